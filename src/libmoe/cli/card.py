"""``libmoe card``."""

from __future__ import annotations

from pathlib import Path

from libmoe.cli.output import say


def run(folder: Path) -> None:
    from libmoe.eval.opening import model_folder
    from libmoe.models.card import write_card

    place = Path(model_folder(folder))
    if write_card(place):
        say(f"{place / 'README.md'} says what the files say")
    else:
        say(f"{place / 'README.md'} was edited by hand and stays as it is; remove it to have it written anew")
