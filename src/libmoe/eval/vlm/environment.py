"""The environment of lmms-eval: made on demand, once, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import libmoe
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import hold, write_json
from libmoe.data.files import cache_dir
from libmoe.eval.vlm.packages import FOREIGN, IMPORTS, PACKAGES, STUBS, VERSION

RECORD = "libmoe.json"
"""What the main environment held before and after, kept in the made environment."""


def ensure(progress: Callable[[str], None] = lambda text: None) -> Path:
    """The Python of the environment, which is made when it is not there (a download of 8 MB).

    Two processes may ask at once: one makes it, the other waits.  It appears under its name only when it is complete.

    Args:
        progress: called with what is being done.

    Raises:
        DataError: it cannot be made (no network and no folder of wheels, a Python without ``ensurepip``, ...).
    """
    folder = environment_dir()
    if python_of(folder).is_file():
        return python_of(folder)
    with _alone(folder.with_name(f"{folder.name}.making"), progress):
        if python_of(folder).is_file():
            return python_of(folder)
        shutil.rmtree(folder, ignore_errors=True)  # one whose Python was removed or upgraded
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _make(temporary, progress)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return python_of(folder)


def environment_dir() -> Path:
    """Where the environment is or will be; another one for other packages, another Python or another main one."""
    facts = [PACKAGES, STUBS, main_paths(), list(sys.version_info[:3]), sys.base_prefix]
    name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()
    return cache_dir() / "envs" / f"lmms-eval-{VERSION}-{name}"


def python_of(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def main_paths() -> list[str]:
    """Where the packages of this process, LibMoE among them, are imported from."""
    found = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([*found, str(Path(libmoe.__file__).resolve().parents[1])]))


def clean_environ() -> dict[str, str]:
    """Environment variables for its Python: nothing that puts other packages before its own."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")
    }
    return kept | {"PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main_packages() -> list[str]:
    """``name==version`` of all that is installed in the main environment."""
    return sorted(
        {f"{d.metadata['Name']}=={d.version}" for d in distributions(path=main_paths())}, key=str.lower
    )


def check(imports: bool = True) -> list[dict[str, Any]]:
    """What the environment is like: entries with ``what``, ``ok`` (``None`` while it is not made) and ``found``.

    Args:
        imports: also import what evaluations import, which takes seconds.
    """
    folder = environment_dir()
    if not python_of(folder).is_file():
        return [
            {
                "what": "vision environment",
                "ok": None,
                "found": "not made; `libmoe eval --setup-vision` makes it",
            }
        ]
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    own = {d.metadata["Name"].lower() for d in distributions(path=[str(_site(folder))])}
    foreign = sorted(own & set(FOREIGN))
    before, after = record["before"], record["after"]
    checks = [
        {"what": "vision environment", "ok": True, "found": str(folder)},
        {
            "what": "main environment whole",
            "ok": before == after,
            "found": f"{len(after)} packages, the same before and after"
            if before == after
            else f"changed: {', '.join(sorted(set(before) ^ set(after)))}",
        },
        {
            "what": "no second torch",
            "ok": not foreign,
            "found": ", ".join(foreign) or "torch and transformers are the main environment's",
        },
    ]
    if not imports:
        return checks
    try:
        there = _import_test(folder)
    except DataError as error:
        return [*checks, {"what": "lmms-eval", "ok": False, "found": str(error)}]
    same = there["torch_file"] == _main_torch()
    return [
        *checks,
        {"what": "lmms-eval", "ok": there["lmms-eval"] == VERSION, "found": there["lmms-eval"]},
        {"what": "torch of vision tasks", "ok": same, "found": f"{there['torch']}, {there['torch_file']}"},
    ]


def _make(folder: Path, progress: Callable[[str], None]) -> None:
    before = main_packages()
    progress(f"making an environment for lmms-eval {VERSION}")
    try:
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(folder)
    except (subprocess.CalledProcessError, OSError) as error:
        raise DataError(
            f"an environment for lmms-eval cannot be made with {sys.executable}: {_last_line(str(error))}; "
            "Python's venv and ensurepip are needed (python3-venv on Debian)"
        ) from None
    progress(f"installing lmms-eval {VERSION} and {len(PACKAGES) - 1} small packages")
    pip = [
        str(python_of(folder)),
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--disable-pip-version-check",
        "--no-input",
    ]
    done = subprocess.run(
        [*pip, "--quiet", *PACKAGES], env=clean_environ(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        why = lines[-1].removeprefix("ERROR: ") if lines else _last_line(done.stderr)
        raise DataError(
            f"lmms-eval cannot be installed: {why}; without a network set PIP_NO_INDEX=1 and PIP_FIND_LINKS to a "
            "folder of wheels"
        )
    stubs = _site(folder) / "libmoe_stubs"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(text, encoding="utf-8")
    # Written last, so that pip does not see, and cannot take for its own, what the main environment holds.
    lines = [*main_paths(), stubs.name]  # the latter is relative to where this file lies
    (_site(folder) / "libmoe-main.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    progress("testing it")
    _import_test(folder)
    after = main_packages()
    if before != after:
        raise DataError(
            f"the main environment changed meanwhile: {', '.join(sorted(set(before) ^ set(after)))}"
        )
    write_json(folder / RECORD, {"packages": PACKAGES, "before": before, "after": after})


def _import_test(folder: Path) -> dict[str, str]:
    """Import what evaluations import; versions as found there."""
    code = (
        "import importlib, importlib.metadata, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "import torch, transformers\n"
        "print('\\n' + json.dumps({'lmms-eval': importlib.metadata.version('lmms-eval'), 'torch': torch.__version__,"
        " 'torch_file': torch.__file__, 'transformers': transformers.__version__}))"
    )
    done = subprocess.run(
        [str(python_of(folder)), "-P", "-c", code, *IMPORTS],
        env=clean_environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DataError(f"lmms-eval does not work in its environment: {_last_line(done.stderr)}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main_torch() -> str:
    import torch

    return str(torch.__file__)


def _site(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))


@contextlib.contextmanager
def _alone(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold ``folder``, waiting for another process that does."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(hold(folder))
                break
            except ConfigError:
                if not told:
                    progress("another process is making the environment; waiting for it")
                    told = True
                time.sleep(0.5)
        yield


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:300]
