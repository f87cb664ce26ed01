"""``libmoe doctor``: is this machine ready, and what would make it more so?"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from libmoe.cli.output import emit_json, table
from libmoe.core.errors import LibMoEError

OPTIONAL = {
    "lm_eval": "zero-shot tasks: pip install 'libmoe[eval]'",
    "matplotlib": "pictures: pip install 'libmoe[report]'",
    "pyarrow": "routing traces: pip install 'libmoe[trace]'",
    "datasets": "Hugging Face datasets: pip install 'libmoe[data]'",
    "peft": "adapters: pip install 'libmoe[finetune]'",
    "tensorboard": "tracker: pip install 'libmoe[tensorboard]'",
    "triton": "GPU kernels: pip install 'libmoe[gpu]'",
    "ray": "grids on a cluster: pip install 'libmoe[ray]'",
}


def run(as_json: bool) -> None:
    checks = gather()
    if as_json:
        emit_json(checks)
    else:
        table(["", "what", "found"], [[_mark(c["ok"]), c["what"], c["found"]] for c in checks])
    broken = [c for c in checks if c["ok"] is False]
    if broken:
        raise LibMoEError(f"{len(broken)} check(s) failed: {', '.join(c['what'] for c in broken)}")


def _mark(ok: bool | None) -> str:
    return {True: "ok", False: "FAIL", None: "-"}[ok]


def gather() -> list[dict[str, Any]]:
    """One entry per check: ``ok`` is None for what is optional and absent."""
    return [*_versions(), *_machine(), *_data(), *_optional()]


def _check(what: str, ok: bool | None, found: object) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": str(found)}


def _versions() -> list[dict[str, Any]]:
    import torch

    import libmoe

    checks = [
        _check(
            "python >= 3.11",
            tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 11),
            platform.python_version(),
        ),
        _check("libmoe", True, libmoe.__version__),
        _check(
            "torch >= 2.9", tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9), torch.__version__
        ),
    ]
    for name in ("transformers", "safetensors", "tokenizers"):
        try:
            checks.append(_check(name, True, version(name)))
        except PackageNotFoundError:
            checks.append(_check(name, False, "missing: pip install libmoe"))
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            checks.append(
                _check("torchvision", False, f"broken beside this torch: pip uninstall torchvision ({error})")
            )
    return checks


def _machine() -> list[dict[str, Any]]:
    import torch

    free = shutil.disk_usage(Path.cwd()).free
    cache = Path(os.environ.get("LIBMOE_CACHE", Path.home() / ".cache" / "libmoe"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache):
            writable = True
    except OSError:
        writable = False
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return [
        _check(
            "cores and threads", True, f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
        ),
        _check("device", True, device),
        _check("free disk >= 1 GB", free > 1e9, f"{free / 1e9:.1f} GB"),
        _check(
            "cache folder can be written",
            writable,
            cache if writable else f"{cache}: set LIBMOE_CACHE to another",
        ),
    ]


def _data() -> list[dict[str, Any]]:
    from libmoe.data import load_corpus, load_tokenizer

    try:
        corpus = load_corpus("embedded")
        checks = [
            _check("embedded corpus", True, f"{len(corpus.domains)} domains, {corpus.fingerprint()[:12]}")
        ]
    except LibMoEError as error:
        checks = [_check("embedded corpus", False, error)]
    tokenizer = load_tokenizer()
    text = "Mixture of experts: naïve routing?\n\t3·7 = 21"
    whole = tokenizer.decode(tokenizer.encode(text)) == text
    return [*checks, _check("embedded tokenizer round trip", whole, f"{len(tokenizer)} tokens")]


def _optional() -> list[dict[str, Any]]:
    checks = []
    for module, use in OPTIONAL.items():
        present = importlib.util.find_spec(module) is not None
        name = module.replace("_", "-")
        checks.append(
            _check(name, True if present else None, version(name) if present else f"absent ({use})")
        )
    return checks
