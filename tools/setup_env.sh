#!/usr/bin/env bash
# Makes the project's own virtual environment, or brings it up to date.
#
#   tools/setup_env.sh VENV EXTRAS          e.g.  tools/setup_env.sh .venv eval,report
#
# PYTHON          interpreter to use (default: python3.11, else python3)
# TORCH_SPEC      what to ask pip for (default: torch==2.13.0)
# PIP_TORCH_ARGS  more arguments for that one pip call, e.g. --index-url with PyTorch's CPU wheels
#
# torch comes first and is then held by a constraints file: nothing installed after it may exchange one build
# of torch for another. torchvision and torchaudio are barred, because a build that does not match torch's own
# breaks the import of transformers.
set -euo pipefail

venv=${1:?usage: tools/setup_env.sh VENV EXTRAS}
extras=${2:?usage: tools/setup_env.sh VENV EXTRAS}
torch_spec=${TORCH_SPEC:-torch==2.13.0}
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1

log=$(mktemp)
child=
unfinished=$venv/.unfinished
trap '[ -z "$child" ] || kill "$child" 2>/dev/null' EXIT
trap 'rm -f "$log"; printf "\nInterrupted. The same command takes it up again.\n" >&2; exit 130' INT TERM

die() { printf '%s\n' "$*" >&2; exit 1; }

# step WHAT COMMAND...: run the command, its output in the log, and keep saying that it is alive.
step() {
    local what=$1 start=$SECONDS report=20 status=0
    shift
    printf '  %s ...\n' "$what"
    "$@" >>"$log" 2>&1 &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.5
        local elapsed=$((SECONDS - start))
        if [ -t 1 ]; then
            printf '\r    %d s ' "$elapsed"
        elif [ "$elapsed" -ge "$report" ]; then
            printf '    %d s\n' "$elapsed"
            report=$((report + 20))
        fi
    done
    if [ -t 1 ]; then printf '\r          \r'; fi
    wait "$child" || status=$?
    child=
    if [ "$status" -ne 0 ]; then
        tail -n 25 "$log" >&2
        die "Set-up stopped at: $what. All of pip's output: $log. The same command takes it up again."
    fi
}

install() {  # install WHAT PIP-ARGUMENTS...
    local what=$1
    shift
    touch "$unfinished"
    # Without compiling all of it, most of which is never imported: first_import compiles what is used.
    step "$what" "$venv/bin/python" -m pip install --no-compile "$@"
    rm -f "$unfinished"
}

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        if recent_enough "$candidate"; then echo "$candidate"; return; fi
    done
    candidate=${PYTHON:-python3}
    die "LibMoE needs Python 3.11 or newer, and $candidate is" \
        "$("$candidate" --version 2>/dev/null || echo 'not there'): name one with PYTHON=/path/to/python"
}

first_import() {
    exec env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" - <<'PYTHON'
from importlib import import_module
from importlib.util import find_spec

for name in (
    "torch", "transformers.trainer", "transformers.models.llama.modeling_llama", "rich", "typer",
    "lm_eval.models.huggingface", "matplotlib.pyplot", "pyarrow.parquet", "datasets", "peft", "pytest",
):
    if find_spec(name.partition(".")[0]):
        import_module(name)
PYTHON
}

usable() { recent_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

echo "Setting up $venv (extras: $extras)"
# Stopped in the middle of an installation, pip can leave a package that it later takes for whole. Starting
# anew is the sure way and not a slow one: what was downloaded is in pip's cache.
if [ -e "$unfinished" ] || ! usable; then
    python=$(find_python)
    step "creating the environment with $("$python" --version)" "$python" -m venv --clear "$venv"
fi

# shellcheck disable=SC2086  # PIP_TORCH_ARGS is several words on purpose
install "installing $torch_spec, the largest part" "$torch_spec" ${PIP_TORCH_ARGS:-}
torch_version=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')
printf '%s\n' "torch==$torch_version" "torchvision<0" "torchaudio<0" >"$venv/constraints.txt"

install "installing libmoe[$extras] beside torch $torch_version" \
    --constraint "$venv/constraints.txt" --editable ".[$extras]"
step "checking that the versions agree" "$venv/bin/python" -m pip check
step "importing them once, so that later starts are quick" first_import
rm -f "$log"
echo "Ready after $SECONDS s."
