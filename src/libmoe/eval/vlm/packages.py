"""What the environment of lmms-eval holds, and what of it is tested."""

from __future__ import annotations

VERSION = "0.7.3"
"""Release of lmms-eval; another one may name or score tasks differently."""

PACKAGES = [
    f"lmms-eval=={VERSION}",
    "loguru==0.7.3",  # its log
    "tenacity==9.1.2",  # tries to load data again
    "Levenshtein==0.27.3",  # MathVista: the choice most like an answer
    "rapidfuzz==3.14.3",  # the same
    "openpyxl==3.1.5",  # MMBench: the file for its server
    "et-xmlfile==2.0.0",  # the same
    "filelock==3.20.0",  # lmms-eval imports a module of it that later releases lack
]
"""Installed without their dependencies.  Everything else that lmms-eval imports comes with ``libmoe[eval]``."""

STUBS = {
    "decord.py": """class VideoReader:
    def __init__(self, *args, **kwargs):
        raise ImportError("videos need the package decord")


def cpu(index=0):
    return index
""",
}
"""Modules that lmms-eval's LLaVA classes import for videos, which images do not need; a real one goes before these."""

FOREIGN = ("torch", "torchvision", "torchaudio", "transformers", "numpy", "datasets", "triton")
"""Must not be in it: a second copy, or one that does not fit the main environment's torch."""

IMPORTS = (
    "lmms_eval.evaluator",
    "lmms_eval.tasks",
    "lmms_eval.models.chat.llava_hf",
    "lmms_eval.models.chat.huggingface",
    "libmoe.eval.vlm.worker",
)
"""Modules whose import shows that it works."""
