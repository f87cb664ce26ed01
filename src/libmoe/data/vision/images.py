"""From image files to the pixels a vision tower takes, with transformers' own processors and without torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from libmoe.core.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

ASPECTS = ("pad", "stretch")


def require_pillow() -> None:
    """Raise ``ConfigError`` where Pillow is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ConfigError("images need Pillow: pip install libmoe[vision]") from None


def open_image(path: str | Path) -> Image:
    """An image file as RGB; raises what PIL raises for a broken one."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def verify_image(path: str | Path) -> None:
    """Read the headers (of a PNG also the checksums) without decoding; raises what PIL raises for a broken file."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        image.verify()


def make_image_processor(
    size: int, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3, aspect: str = "pad"
) -> Any:
    """A transformers image processor for square inputs, which is saved with a model like any other.

    Args:
        size: pixels of a side.
        mean: of each colour in [0, 1]; subtracted before the division by ``std``.
        aspect: images that are not square are padded with the mean colour (Liu et al., "Improved Baselines with
            Visual Instruction Tuning", 2023) or stretched.

    Raises:
        ConfigError: Pillow is missing, or an unknown or impossible value.
    """
    require_pillow()
    if aspect not in ASPECTS:
        raise unknown("aspect", aspect, ASPECTS)
    if size < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"size={size}, mean={mean} or std={std} is impossible; give 3 values and positive std"
        )
    import transformers

    # Where classes for torchvision have the plain name, PIL's are called so; before, theirs was the plain one.
    kind = getattr(transformers, "LlavaImageProcessorPil", None) or transformers.LlavaImageProcessor
    return kind(
        size={"height": size, "width": size},
        do_center_crop=False,
        do_pad=aspect == "pad",
        image_mean=list(mean),
        image_std=list(std),
    )


def load_image_processor(source: str | Path, aspect: str | None = None) -> Any:
    """The image processor of a saved model or vision tower.

    Args:
        source: a folder with ``preprocessor_config.json``, or a name on the Hugging Face hub.
        aspect: take its size, mean and standard deviation, but pad or stretch; by default all is as it was saved.

    Raises:
        ConfigError: Pillow is missing, or it has no square size that ``aspect`` could use.
        DataError: nothing usable is found there.
    """
    require_pillow()
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(str(source), backend="pil")
    except Exception as error:  # missing name, no network, unknown class, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot load an image processor from {str(source)!r} ({reason:.120})") from error
    if aspect is None:
        return processor
    _, height, width = pixel_shape(processor)
    if height != width:
        raise ConfigError(
            f"aspect={aspect!r} needs a square size, and {str(source)!r} has {height} x {width}"
        )
    return make_image_processor(height, tuple(processor.image_mean), tuple(processor.image_std), aspect)


def to_pixels(processor: Any, image: Image) -> torch.Tensor:
    """What a transformers image processor makes of one RGB image, float32 [C, H, W].

    Raises:
        ConfigError: the processor cuts images into several, or returns something else than one image.
    """
    found = processor(images=image, return_tensors="pt")["pixel_values"]
    if found.dim() != 4 or len(found) != 1:
        raise ConfigError(
            f"{type(processor).__name__} makes pixel_values of shape {list(found.shape)} of an image where "
            "[1, C, H, W] is needed; choose a processor that makes one image of one"
        )
    return found[0].float()


def pixel_shape(processor: Any) -> tuple[int, int, int]:
    """(C, H, W) of what a processor makes; ``ConfigError`` where that depends on the image."""
    import PIL.Image

    shapes = {tuple(to_pixels(processor, PIL.Image.new("RGB", size)).shape) for size in ((96, 48), (48, 96))}
    if len(shapes) != 1:
        raise ConfigError(
            f"{type(processor).__name__} keeps the proportions of images, which cannot be put in one batch; give "
            "load_image_processor an aspect, or use make_image_processor"
        )
    return shapes.pop()
