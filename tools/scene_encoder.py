"""Make an image encoder of `vlm-mini`, which knows the embedded scenes: ``python tools/scene_encoder.py OUT``.

CLIP and SigLIP have learned what photographs show before a vision-language model is made of them.  Here an encoder
learns the same of drawings, in minutes on a CPU core: every patch tells which thing its cell shows, or which letters
are written there, on which colour, and where it is.  It sees scenes of the training split alone: no held-out thing,
artist or composition.

It starts from nothing and is of SigLIP's kind, or from the first blocks of a pretrained encoder.  OUT is a folder that
transformers loads; where it is there already nothing is done.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from libmoe.core.errors import LibMoEError
from libmoe.core.seeding import seeded
from libmoe.data.vision.images import load_image_processor, make_image_processor
from libmoe.data.vision.scenes.drawing import SIZE, draw
from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.kinds import KINDS, training_scene
from libmoe.data.vision.scenes.scene import BACKGROUNDS, Scene, Writing
from libmoe.data.vision.scenes.things import trained
from libmoe.models.encoders import VisionConfig, build_encoder, image_tokens
from libmoe.models.saving import new_folder

THINGS = ["nothing", "writing", *(thing.name for thing in trained())]
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789"
LENGTH = 4
"""Letters that fit into a cell."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the encoder")
    parser.add_argument("--start", help="folder of a pretrained encoder; by default one of SigLIP's kind is drawn")
    parser.add_argument("--layers", type=int, default=6, help="its first blocks that are kept (default 6)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    if (options.out / "config.json").is_file():
        print(f"{options.out} is there already")
        return
    try:
        make(options)
    except LibMoEError as error:
        sys.exit(f"error: {error}")


def make(options: argparse.Namespace) -> None:
    if options.start:
        config = VisionConfig(checkpoint=options.start, image_size=SIZE, layers=options.layers)
        told = load_image_processor(options.start)
        processor = make_image_processor(SIZE, tuple(told.image_mean), tuple(told.image_std))
    else:
        config = VisionConfig(
            architecture="siglip_vision_model", hidden_size=128, num_hidden_layers=4, image_size=SIZE,
            extra={"vision_use_head": False},
        )  # fmt: skip
        processor = make_image_processor(SIZE)
    encoder = build_encoder(config, seed=0)
    right = learn(encoder, processor, options.steps, options.batch, options.lr)
    with new_folder(options.out) as new:
        encoder.save_pretrained(new)
        processor.save_pretrained(new)
    print(f"{options.out}: " + ", ".join(f"{name} {share:.1%}" for name, share in right.items()) + " of new scenes")


class Reader(nn.Module):
    """What each patch says of its cell: logits of the thing, the letters written there, the ground and its place."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.shapes = {
            "things": (len(THINGS),), "letters": (LENGTH, len(LETTERS)), "grounds": (len(BACKGROUNDS),),
            "places": (patches,),
        }  # fmt: skip
        self.linear = nn.Linear(width, sum(map(math.prod, self.shapes.values())))

    def forward(self, x_IPC: Tensor) -> dict[str, Tensor]:
        parts = self.linear(x_IPC).split([*map(math.prod, self.shapes.values())], dim=-1)
        return {name: part.unflatten(-1, shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}


class Scenes(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pixels of scenes of a part of the data, and what their patches show."""

    def __init__(self, part: str, number: int, processor: Any, side: int) -> None:
        self.part, self.number, self.processor, self.side = part, number, processor, side

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        draws = Draw("encoder", self.part, number)
        scene = training_scene(draws.pick(list(KINDS), "kind"), self.part, draws.within("scene"))
        pixels = self.processor(draw(scene), return_tensors="pt")["pixel_values"][0]
        return pixels, labels_of(scene, self.side)


def labels_of(scene: Scene, side: int) -> dict[str, Tensor]:
    """For each of ``side * side`` patches the right answers of a :class:`Reader`; -1 where nothing is written."""
    things, letters = [], []
    for cell in scene.cells:
        written = isinstance(cell, Writing)
        things.append(THINGS.index("nothing" if cell is None else "writing" if written else cell.name))
        letters.append([LETTERS.index(c) for c in cell.text.ljust(LENGTH)] if written else [-1] * LENGTH)
    half = side / 2
    cell_P = [int(row >= half) * 2 + int(column >= half) for row in range(side) for column in range(side)]
    return {
        "things": torch.tensor(things)[cell_P],
        "letters": torch.tensor(letters)[cell_P],
        "grounds": torch.full((side * side,), list(BACKGROUNDS).index(scene.background)),
        "places": torch.arange(side * side),
    }


def losses(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the answers there are; 0 for letters where no scene has any."""
    return {
        name: F.cross_entropy(logits[name].flatten(0, -2), right.flatten(), ignore_index=-1, reduction="sum")
        / (right >= 0).sum().clamp_min(1)
        for name, right in labels.items()
    }


def shares(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """What share of the answers is right."""
    return {
        name: float((logits[name].argmax(-1) == right)[right >= 0].float().mean()) for name, right in labels.items()
    }


def learn(encoder: Any, processor: Any, steps: int, batch: int, lr: float) -> dict[str, float]:
    """Train in place; returns what share is right on scenes of other compositions."""
    patches, has_class_token = image_tokens(encoder)
    side = math.isqrt(patches)
    with seeded(0, "reader"):
        reader = Reader(encoder.config.hidden_size, patches)
    parameters = [p for p in [*encoder.parameters(), *reader.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)

    def read(pixels: Tensor) -> dict[str, Tensor]:
        answers: dict[str, Tensor] = reader(encoder(pixel_values=pixels).last_hidden_state[:, int(has_class_token) :])
        return answers

    encoder.train()
    bar = tqdm(torch.utils.data.DataLoader(Scenes("train", steps * batch, processor, side), batch), unit="step")
    for pixels, labels in bar:
        parts = losses(read(pixels), labels)
        torch.stack([*parts.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix({name: f"{loss.item():.2f}" for name, loss in parts.items()}, refresh=False)
    encoder.eval()
    with torch.no_grad():
        pixels, labels = next(iter(torch.utils.data.DataLoader(Scenes("validation", 512, processor, side), 512)))
        return shares(read(pixels), labels)


if __name__ == "__main__":
    main()
