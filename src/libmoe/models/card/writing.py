"""Writing and renewing a card."""

from __future__ import annotations

from pathlib import Path

from libmoe.core.files import write_atomically
from libmoe.models.card.facts import ModelFacts, RunFacts, config_of
from libmoe.models.card.front import front_of
from libmoe.models.card.marks import compose, front_matter
from libmoe.models.card.text import body_text

FILE = "README.md"


def write_card(folder: str | Path, model: ModelFacts | None = None, place: Path | None = None) -> bool:
    """Write ``README.md`` of a model folder, or renew the generated part of the one that is there.

    Args:
        model: facts of weights that have just been written, of which there can be no evaluation yet; ``None`` reads
            what the folder and its run hold.
        place: where the folder will be, while it is being written elsewhere.

    Returns:
        Whether it was written; a card that was edited between its marks, or has none, is left as it is.

    Raises:
        CheckpointError: the folder holds no model.
    """
    folder = Path(folder)
    place = folder if place is None else place
    old_file = place / FILE
    old = old_file.read_text(encoding="utf-8") if old_file.is_file() else None
    known = model or ModelFacts.of_folder(folder, front_matter(old))
    run = RunFacts.beside(place.absolute(), evaluated=model is None)
    name = str((run.recipe or {}).get("name") or place.absolute().name)
    config = config_of(folder)
    text = compose(front_of(name, known, run), body_text(name, config, known, run), old)
    if text is None:
        return False
    write_atomically(folder / FILE, text.encode())
    return True
