"""Which of a model's FFNs become MoE layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from libmoe.core.errors import ConfigError, nearest
from libmoe.models.detect import FoundFFN
from libmoe.models.parts import part_of

Where = str | Sequence[int]
RULES = {
    "all": (0,), "every": (1, 2), "last": (1,), "first": (1,), "first_dense": (1,),
    "first_half": (0,), "second_half": (0,),
}  # fmt: skip
"""How many numbers may follow each rule."""
SIDES = ("encoder", "decoder", "vision", "connector", "language")


def select(found: Sequence[FoundFFN], where: Where) -> list[FoundFFN]:
    """The FFNs that ``where`` names, in order.

    ``where`` is one of

    * ``all``;
    * ``every:n``: the n-th, 2n-th, ... of each stack of blocks (Switch Transformers has ``every:2``);
    * ``every:n:i``: every n-th from place i of each stack, counted from 0 (MoE-LLaVA has ``every:2:0``);
    * ``last:n``, ``first:n``: of each stack;
    * ``first_dense:n``: all but the first n of each stack (DeepSeek);
    * ``first_half``, ``second_half``: of each stack; of an odd number the second half is the larger one;
    * ``encoder`` or ``decoder``, alone or before one of these rules: ``decoder:every:2``;
    * ``vision``, ``connector`` or ``language``, the parts of a vision-language model, in the same way;
    * several of these, joined: ``vision:last:6+connector``;
    * a shell pattern on module paths, such as ``vision_model.*`` or ``*.layers.[0-3].*``;
    * a list of places among all FFNs of the model, from 0.

    Raises:
        ConfigError: an unknown rule, a number out of range, or nothing is left.
    """
    if not isinstance(where, str):
        return _by_index(found, where)
    chosen = []
    for part in where.split("+"):
        new = _by_pattern(found, part) if any(sign in part for sign in "*?[.") else _by_rule(found, part)
        if not new:
            raise _nothing(found, part)
        chosen += new
    return sorted(dict.fromkeys(chosen), key=found.index)


def _by_pattern(found: Sequence[FoundFFN], pattern: str) -> list[FoundFFN]:
    return [ffn for ffn in found if fnmatch(ffn.path, pattern)]


def _nothing(found: Sequence[FoundFFN], where: str) -> ConfigError:
    stacks = ", ".join(dict.fromkeys(ffn.stack for ffn in found))
    return ConfigError(f"where={where!r} selects none of the {len(found)} feed-forward networks in {stacks}")


def _by_index(found: Sequence[FoundFFN], where: Sequence[int]) -> list[FoundFFN]:
    wrong = next(
        (i for i in where if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(found)), None
    )
    if wrong is not None or not where:
        raise ConfigError(
            f"where={list(where)}: list places from 0 to {len(found) - 1}, one for each MoE layer"
        )
    return [found[i] for i in sorted(set(where))]


def _by_rule(found: Sequence[FoundFFN], where: str) -> list[FoundFFN]:
    words = where.split(":")
    side = words.pop(0) if words[0] in SIDES else None
    rule, numbers = (words[0] if words else "all"), _numbers(words[1:], where)
    if len(numbers) not in RULES.get(rule, ()):
        guess = nearest(rule, RULES)
        hint = f"did you mean {guess!r}? " if guess and guess != rule else ""
        raise ConfigError(
            f"cannot read where={where!r}; {hint}write all, every:n, every:n:i, last:n, first:n, first_dense:n, "
            "first_half, second_half, encoder, decoder, vision, connector, language, a path pattern, a list of places, "
            "or several joined by +"
        )
    pool = [ffn for ffn in found if side is None or side == part_of(ffn.path) or side in ffn.stack.split(".")]
    stacks = {
        stack: [ffn for ffn in pool if ffn.stack == stack] for stack in dict.fromkeys(f.stack for f in pool)
    }
    return [ffn for ffns in stacks.values() for ffn in _of_stack(ffns, rule, numbers)]


def _of_stack(ffns: Sequence[FoundFFN], rule: str, numbers: Sequence[int]) -> Iterable[FoundFFN]:
    n, half = numbers[0] if numbers else 0, len(ffns) // 2
    start = numbers[1] if len(numbers) > 1 else n - 1
    return {
        "all": ffns,
        "every": ffns[start::n] if n else [],
        "last": ffns[max(0, len(ffns) - n) :],
        "first": ffns[:n],
        "first_dense": ffns[n:],
        "first_half": ffns[:half],
        "second_half": ffns[half:],
    }[rule]


def _numbers(words: Sequence[str], where: str) -> list[int]:
    if len(words) > 2 or not all(word.isdigit() for word in words):
        raise ConfigError(f"where={where!r}: expected one whole number after the rule, as in every:2 (or every:2:0)")
    return [int(word) for word in words]
