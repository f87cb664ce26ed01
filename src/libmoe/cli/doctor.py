"""``libmoe doctor``: is this machine ready, and what would make it more so?"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from libmoe.cli.output import emit_json, say, table
from libmoe.core.errors import LibMoEError

OPTIONAL = {
    "lm_eval": ("lm-eval", "zero-shot tasks", "eval"),
    "matplotlib": ("matplotlib", "pictures", "report"),
    "pyarrow": ("pyarrow", "routing traces", "trace"),
    "datasets": ("datasets", "Hugging Face data sets", "data"),
    "peft": ("peft", "adapters", "finetune"),
    "tensorboard": ("tensorboard", "tracker", "tensorboard"),
    "wandb": ("wandb", "tracker", "wandb"),
    "mlflow": ("mlflow", "tracker", "mlflow"),
    "triton": ("triton", "GPU kernels", "gpu"),
    "ray": ("ray", "comparisons on a cluster", "ray"),
}
"""By module: its distribution, what it is for, and the extra of libmoe that brings it."""

Check = dict[str, Any]


def run(as_json: bool) -> None:
    """Exits with code 1 when something that is needed does not work."""
    checks = gather()
    broken = [c["what"] for c in checks if c["ok"] is False]
    if as_json:
        emit_json(checks)
    else:
        marks = {True: "ok", False: "FAIL", None: "-"}
        table(["", "what", "found"], [[marks[c["ok"]], c["what"], c["found"]] for c in checks])
        say(f"\nNot ready: {', '.join(broken)}" if broken else "\nReady. Try `libmoe quickstart`.")
    if broken:
        raise typer.Exit(1)


def gather() -> list[Check]:
    """One entry per check: ``ok`` is None for what is optional and absent."""
    from libmoe.eval.vlm import check

    optional = [_optional(module) for module in OPTIONAL]
    return [*_versions(), *_machine(), *_backends(), *_data(), *optional, *check(imports=False)]


def _check(what: str, ok: bool | None, found: object) -> Check:
    return {"what": what, "ok": ok, "found": " ".join(str(found).split())}


def _attempt(what: str, look: Callable[[], object]) -> Check:
    """The check passes when ``look`` returns; what it raises is what was found."""
    try:
        return _check(what, True, look())
    except Exception as error:
        text = str(error) if isinstance(error, LibMoEError) else f"{type(error).__name__}: {error}"
        return _check(what, False, text[:200])


def _versions() -> list[Check]:
    import libmoe
    from libmoe.core.machine import installed_version

    checks = [_check("libmoe", True, libmoe.__version__)]
    for name, least in (("python", (3, 11)), ("torch", (2, 9)), ("transformers", (5, 0))):
        found = platform.python_version() if name == "python" else installed_version(name)
        ok = found is not None and tuple(int(part) for part in found.split(".")[:2]) >= least
        checks.append(_check(f"{name} >= {least[0]}.{least[1]}", ok, found or "missing: pip install libmoe"))
    checks += [_attempt(name, partial(version, name)) for name in ("safetensors", "tokenizers")]
    if importlib.util.find_spec("torchvision") is not None:
        beside = _attempt("torchvision", lambda: importlib.import_module("torchvision").__version__)
        if not beside["ok"]:
            beside["found"] = (
                "does not fit this torch: pip uninstall torchvision, or install the matching one"
            )
        checks.append(beside)
    return checks


def _machine() -> list[Check]:
    import torch

    free = shutil.disk_usage(Path.cwd()).free
    checks = [
        _check(
            "processor",
            True,
            f"{os.cpu_count()} cores; torch uses {torch.get_num_threads()} for one operation",
        ),
        _attempt("memory", _memory),
        _attempt("accelerator", _accelerator),
        _check("free disk here >= 1 GB", free > 1e9, f"{free / 1e9:.1f} GB"),
        _attempt("cache folder", _cache),
    ]
    return checks


def _backends() -> list[Check]:
    """What experts can compute with here; how the others fail is no fault of the machine."""
    from libmoe.ops import backends

    found = {name: backend.verify() for name, backend in backends().items()}
    return [_check(f"backend {name}", ok or None, reason) for name, (ok, reason) in found.items()]


def _memory() -> str:
    from libmoe.core.machine import memory_bytes

    total = memory_bytes()
    return "unknown on this system" if total is None else f"{total / 2**30:.1f} GiB"


def _accelerator() -> str:
    """Names of the GPUs, after a product on each has been computed; training uses one per process."""
    import torch

    if not torch.cuda.is_available():
        return "none: the CPU is used"
    names = []
    for index in range(torch.cuda.device_count()):
        torch.ones(8, 8, device=f"cuda:{index}").mm(torch.ones(8, 8, device=f"cuda:{index}")).cpu()
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        names.append(f"{torch.cuda.get_device_name(index)} ({memory:.0f} GiB)")
    return ", ".join(names)


def _cache() -> Path:
    from libmoe.data import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise LibMoEError(
            f"{folder}: {error.strerror}; set LIBMOE_CACHE to a folder that can be written"
        ) from None


def _data() -> list[Check]:
    from libmoe.data import load_corpus, load_tokenizer

    def corpus() -> str:
        found = load_corpus("embedded")
        return f"{len(found.domains)} domains, fingerprint {found.fingerprint()[:12]}"

    def tokenizer() -> str:
        found, text = load_tokenizer(), "Mixture of experts: naïve routing?\n\t3·7 = 21"
        if found.decode(found.encode(text)) != text:
            raise LibMoEError("encoding and decoding changes a text; reinstall libmoe")
        return f"{len(found):,} tokens, text comes back unchanged"

    return [_attempt("embedded corpus", corpus), _attempt("embedded tokenizer", tokenizer)]


def _optional(module: str) -> Check:
    """Present is not enough: a package that is there but cannot be imported is broken."""
    name, use, extra = OPTIONAL[module]
    if importlib.util.find_spec(module) is None:
        return _check(name, None, f"absent; for {use}: pip install 'libmoe[{extra}]'")

    def look() -> str:
        from libmoe.core.machine import installed_version

        found = importlib.import_module(module)
        # One that was built from source may have another name.
        return f"{installed_version(name) or getattr(found, '__version__', 'present')} ({use})"

    return _attempt(name, look)
