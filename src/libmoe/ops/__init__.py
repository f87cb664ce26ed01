"""Computing with stacked experts: a plain reference and fast backends with one meaning.

``ffn`` and ``grouped_linear`` are what experts call; ``backends`` lists what can compute them, ``explain`` says
which one ``auto`` picks for a task and why.
"""

from libmoe.ops.grouped import ffn, grouped_linear
from libmoe.ops.select import AUTO, Choice, backends, choose, explain
from libmoe.ops.task import Rows, StackedFFN, Task

__all__ = [
    "AUTO",
    "Choice",
    "Rows",
    "StackedFFN",
    "Task",
    "backends",
    "choose",
    "explain",
    "ffn",
    "grouped_linear",
]
