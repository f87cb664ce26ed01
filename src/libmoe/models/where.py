"""Which of a model's FFNs become MoE layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from libmoe.core.errors import ConfigError, nearest
from libmoe.models.detect import FoundFFN
from libmoe.models.parts import part_of

Where = str | Sequence[int]
RULES = ("all", "every", "last", "first", "first_dense")
SIDES = ("encoder", "decoder", "vision", "connector", "language")


def select(found: Sequence[FoundFFN], where: Where) -> list[FoundFFN]:
    """The FFNs that ``where`` names, in order.

    ``where`` is one of

    * ``all``;
    * ``every:n``: the n-th, 2n-th, ... of each stack of blocks (Switch Transformers has ``every:2``);
    * ``last:n``, ``first:n``: of each stack;
    * ``first_dense:n``: all but the first n of each stack (DeepSeek);
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
    rule, number = (words[0] if words else "all"), _number(words[1:], where)
    if rule not in RULES or (rule == "all") != (number is None):
        guess = nearest(rule, RULES)
        hint = f"did you mean {guess!r}? " if guess and guess != rule else ""
        raise ConfigError(
            f"cannot read where={where!r}; {hint}write all, every:n, last:n, first:n, first_dense:n, "
            "encoder, decoder, vision, connector, language, a path pattern, a list of places, or several joined by +"
        )
    pool = [ffn for ffn in found if side is None or side == part_of(ffn.path) or side in ffn.stack.split(".")]
    stacks = {
        stack: [ffn for ffn in pool if ffn.stack == stack] for stack in dict.fromkeys(f.stack for f in pool)
    }
    return [ffn for ffns in stacks.values() for ffn in _of_stack(ffns, rule, number or 0)]


def _of_stack(ffns: Sequence[FoundFFN], rule: str, n: int) -> Iterable[FoundFFN]:
    return {
        "all": ffns,
        "every": ffns[n - 1 :: n] if n else [],
        "last": ffns[max(0, len(ffns) - n) :],
        "first": ffns[:n],
        "first_dense": ffns[n:],
    }[rule]


def _number(words: Sequence[str], where: str) -> int | None:
    if not words:
        return None
    if len(words) > 1 or not words[0].isdigit():
        raise ConfigError(f"where={where!r}: expected one whole number after the rule, as in every:2")
    return int(words[0])
