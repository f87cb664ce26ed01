"""The data sets that published vision-language models were trained on, by name; nothing is downloaded here."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libmoe.core.errors import DataError, unknown
from libmoe.data.vision.llava import LlavaFile
from libmoe.data.vision.rows import Conversation, Conversations


@dataclass(frozen=True)
class NamedSet:
    """What a data set consists of, below one folder.

    Attributes:
        files: the conversations.
        page: where they are published, with the images or what to do for them.
        rows: of all files together, as published; ``None`` where only a rounded number is.
        images: the folder that image names start from.
        folders: folders of images that have to be there.
    """

    files: tuple[str, ...]
    page: str
    rows: int | None
    images: str
    folders: tuple[str, ...]


_INSTRUCTION_IMAGES = (
    "coco/train2017",
    "gqa/images",
    "ocr_vqa/images",
    "textvqa/train_images",
    "vg/VG_100K",
    "vg/VG_100K_2",
)
NAMED = {
    "llava-558k": NamedSet(
        ("blip_laion_cc_sbu_558k.json",),
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
        558_128,
        "images",
        ("images",),
    ),
    "allava": NamedSet(
        ("allava_laion/ALLaVA-Caption-LAION-4V.json", "allava_vflan/ALLaVA-Caption-VFLAN-4V.json"),
        "https://huggingface.co/datasets/FreedomIntelligence/ALLaVA-4V",
        505_588 + 202_552,
        ".",
        ("allava_laion/images", "allava_vflan/images"),
    ),
    "llava-665k": NamedSet(
        ("llava_v1_5_mix665k.json",),
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        665_298,
        ".",
        _INSTRUCTION_IMAGES,
    ),
    "llava-332k": NamedSet(
        ("llava_v1_5_mix665k_half.json",),
        "https://huggingface.co/datasets/DavidNguyen/LLAVA-LibMoE",
        None,
        ".",
        _INSTRUCTION_IMAGES,
    ),
}
"""Names as in LibMoE (Nguyen et al., 2024): alignment, captions, and visual instructions or half of them."""


class Joined:
    """Sources one after another as one; implements :class:`~libmoe.data.vision.rows.Conversations`."""

    def __init__(self, sources: Sequence[Conversations]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        known = "\n".join(source.fingerprint for source in sources)
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, number: int) -> Conversation:
        source = int(np.searchsorted(self._ends, number, side="right"))
        return self.sources[source].row(number - (int(self._ends[source - 1]) if source else 0))


def open_named(
    name: str,
    folder: str | Path,
    *,
    strict: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> LlavaFile | Joined:
    """A named data set that lies in a folder; options as of :class:`~libmoe.data.vision.llava.LlavaFile`.

    Raises:
        ConfigError: an unknown name.
        DataError: something is missing (the line says what to download, and where it belongs), or what
            :class:`~libmoe.data.vision.llava.LlavaFile` raises.
    """
    if name not in NAMED:
        raise unknown("data set", name, NAMED)
    wanted, folder = NAMED[name], Path(folder).expanduser()
    missing = [part for part in (*wanted.files, *wanted.folders) if not (folder / part).exists()]
    if missing:
        raise DataError(
            f"{name} lacks {', '.join(missing)} in {str(folder)!r}; download {' and '.join(wanted.files)} and the "
            f"images as {wanted.page} says, and put them there under these names"
        )
    files = [
        LlavaFile(
            folder / file, folder / wanted.images, strict=strict, cache_dir=cache_dir, progress=progress
        )
        for file in wanted.files
    ]
    rows = sum(len(file) + sum(map(len, file.problems.values())) for file in files)
    if wanted.rows not in (None, rows):
        warnings.warn(f"{name} has {rows} rows here; {wanted.rows} were published", stacklevel=2)
    return files[0] if len(files) == 1 else Joined(files)
