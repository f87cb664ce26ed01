"""Scenes composed of emoji art: an embedded vision-language benchmark that needs no network.

A scene is a plain background with up to four things, or a word or digits, in a 2 x 2 grid.  Scenes for training come
with conversations or captions (:class:`SceneConversations`); test items (:func:`questions`) ask for what MME's
subtasks ask, of three splits: new compositions of known things (``seen``), an artist who was held out (``style``) and
things that were held out (``concept``).  Everything is a pure function of a seed, a split and a number.

``python -m libmoe.data.vision.scenes OUT`` writes conversations as files.
"""

from __future__ import annotations

from libmoe.data.vision.scenes.conversations import TASKS, SceneConversations
from libmoe.data.vision.scenes.drawing import SIZE, draw
from libmoe.data.vision.scenes.export import export
from libmoe.data.vision.scenes.questions import PAIRED, questions, tasks_of
from libmoe.data.vision.scenes.scene import Scene, from_record

__all__ = [
    "PAIRED",
    "SIZE",
    "TASKS",
    "Scene",
    "SceneConversations",
    "draw",
    "export",
    "from_record",
    "questions",
    "tasks_of",
]
