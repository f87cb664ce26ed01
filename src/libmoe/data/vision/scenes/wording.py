"""How questions and answers about scenes are worded."""

from __future__ import annotations

import functools

from libmoe.data.splitting import content_hash
from libmoe.data.vision.scenes.scene import CORNERS, Cell, Scene, Writing

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()

DESCRIBE = "Describe the image."

EXISTENCE = ("Is there {one}?", "Does the image show {one}?", "Can {one} be seen here?")
COUNT = ("How many {many} are there?", "How many {many} can be seen?")
COUNT_ALL = ("How many things are there?", "How many things can be seen?")
POSITION = ("Is the {a} {side} the {b}?",)
CORNER = ("Where is the {name}?", "In which corner is the {name}?")
COLOR = ("What color is the background?", "On what color is it drawn?")
READING = ("What is written?", "Which text can be read?")
SUM = ("What is the sum of the two numbers?", "How much are the two numbers together?")
KNOWLEDGE = ("Is there something that {phrase}?", "Can something be seen that {phrase}?")
KNOWLEDGE_CORNER = ("Where is the thing that {phrase}?", "In which corner is the thing that {phrase}?")
TRANSLATION = ("What is it called in {language}?", "What is its name in {language}?")
COARSE = ("What kind of thing is it?", "To which kind of things does it belong?")
FINE = ("What is it?", "What is shown?")
FINE_CORNER = ("What is at the {corner}?", "What is shown at the {corner}?")
CAPTION = ("What does the image show?", "Which caption fits the image?")
"""The first wording is the one that tests use; training has all."""

SIDES = ("to the left of", "to the right of", "above", "below")

WORDS = (
    "able acid also area army away baby back bank base bath best bill blow boat body bone book born call calm camp "
    "card care case cash cell city club coal cold come cook cool copy corn cost dark data date dawn deep desk dish "
    "down draw dust each east easy edge even fact fair farm fast film find five flag flat foot four free full game "
    "gate gift girl give goal gold good grow hair half hall hand hard have head hear heat help here high hill hold "
    "home hope hour idea inch iron item join jump just keep kind king know lake land last late leaf left life lift "
    "like line list live long look lord love luck main make mark mass meal milk mind moon more move much name near "
    "neck need news next nice nine noon note once open oven over page park part past path plan play poor port read "
    "real rest rice rich ride rise road rock role roof room root rope rule safe sale salt sand save seat seed self "
    "sell send shop show sick side sign silk sing size skin soap soft soil song soon stay step stop such suit take "
    "talk task team tell tent test text thin this time tool town trip true turn type unit upon vast very view vote "
    "wait walk wall want warm wash wave week well west what wide wife wind wine wing wish wood word work yard year "
    "zero"
).split()
"""What is written in scenes, besides numbers."""


@functools.cache
def texts(heldout: bool) -> dict[str, list[str]]:
    """Words and numbers of two and three digits, by kind; one in eight of them is never shown in training."""
    kinds = {
        "word": WORDS,
        "number of two digits": [str(n) for n in range(10, 100)],
        "number of three digits": [str(n) for n in range(100, 1000)],
    }
    return {
        kind: [t for t in found if (int(content_hash(t)[:8], 16) % 8 == 0) == heldout]
        for kind, found in kinds.items()
    }


def caption(scene: Scene, ground: bool = True) -> str:
    """``A cat at the top left, a pizza at the bottom right, on blue.``; without its end if not ``ground``."""
    parts = [
        f"{named(cell)} at the {corner}" for corner, cell in zip(CORNERS, scene.cells) if cell is not None
    ]
    text = ", ".join(parts or ["nothing"]) + (f", on {scene.background}" if ground else "") + "."
    return text[0].upper() + text[1:]


def named(cell: Cell) -> str:
    """``a cat``, ``the word desk`` or ``the number 12``."""
    if isinstance(cell, Writing):
        return f"the {'number' if cell.text.isdigit() else 'word'} {cell.text}"
    return cell.one if cell is not None else "nothing"
