"""What a grid says of the models that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Prepared:
    """A run that others start from.

    Attributes:
        recipe: a shipped recipe or a file.
        out: its run folder.  Where it is finished already, it is kept, whichever comparison it was trained for.
        set: changes to the recipe, ``key.sub=value``.
    """

    recipe: str
    out: str
    set: list[str] = field(default_factory=list)
