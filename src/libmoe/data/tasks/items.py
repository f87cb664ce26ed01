"""Make the items of the embedded multiple-choice tasks from held-out documents.

Everything is a pure function of the documents: random choices come from keyed permutations.  An item is
``{"context", "choices", "gold", "domain"}``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from libmoe.data.order import permutation

Item = dict[str, Any]
Works = Mapping[str, Sequence[str]]  # work -> its documents
CountTokens = Callable[[str], int]

CONTEXT_TOKENS = 60
CHOICE_TOKENS = 24
_PROSE = ("speech", "novel", "bible", "legal", "techdoc")
_SENTENCE = re.compile(r"[A-Z][^.!?:;\"“”()\[\]{}<>|=_*]{60,400}[.!?](?=\s|$)")


def make_items(documents: Mapping[str, Works], count: CountTokens, size: int = 200) -> dict[str, list[Item]]:
    """Build all tasks, ``size`` items each at most.

    Args:
        documents: domain -> work -> documents, of the test split.
        count: counts the tokens of a string; contexts have at most 60 and choices at most 24.
    """
    prose = {d: documents[d] for d in _PROSE}
    makers = {
        "moe_continue": _interleave([_continuations(prose, d, count, other_domains=False) for d in prose]),
        "moe_domain": _interleave([_continuations(prose, d, count, other_domains=True) for d in prose]),
        "moe_cloze": _interleave([_cloze(d, works, count) for d, works in prose.items()]),
        "moe_order": _interleave([_orders(d, works, count) for d, works in prose.items()]),
        "moe_definition": _definitions(documents["dictionary"], count),
    }
    return {name: _balance(name, items, size) for name, items in makers.items()}


def _interleave(sources: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """Take one item from each source in turn until the first is exhausted, so that domains stay balanced."""
    for group in zip(*sources, strict=False):
        yield from group


def _balance(name: str, items: Iterator[Item], size: int) -> list[Item]:
    """Put the right answer (so far the first) in each of the four places equally often."""
    taken = [item for item, _ in zip(items, range(size), strict=False)]
    gold = [int(i) % 4 for i in permutation(len(taken), "gold", name)]
    for item, place in zip(taken, gold, strict=True):
        right, *wrong = item["choices"]
        item["choices"] = [*wrong[:place], right, *wrong[place:]]
        item["gold"] = place
    return taken


def _sentences(works: Works, half: int) -> list[tuple[str, str]]:
    """Every second plain sentence as (work, sentence), in a fixed random order.

    The harness pools the requests of all tasks and mixes up two that have the same text but are cut into
    context and choice at different places; so tasks with different cuts take different halves.
    """
    found = [
        (work, " ".join(match[0].split()))
        for work, documents in works.items()
        for text in documents
        for match in _SENTENCE.finditer(text)
    ]
    found = list(dict.fromkeys(found))
    return [found[i] for i in permutation(len(found), "sentences", *works)[half::2]]


def _cut(sentence: str, count: CountTokens, words: int = 10) -> tuple[str, str] | None:
    """Cut a sentence before its last ``words`` words; ``None`` unless both parts have a fitting size."""
    parts = sentence.split()
    context, rest = " ".join(parts[:-words]), " ".join(parts[-words:])
    fits = len(parts) >= words + 8 and count(context) <= CONTEXT_TOKENS and count(" " + rest) <= CHOICE_TOKENS
    return (context, rest) if fits else None


def _continuations(
    domains: Mapping[str, Works], domain: str, count: CountTokens, *, other_domains: bool
) -> Iterator[Item]:
    cuts = [
        (name, work, *cut)
        for name, works in domains.items()
        for work, sentence in _sentences(works, 0)
        if (cut := _cut(sentence, count))
    ]
    sizes = [count(" " + rest) for *_, rest in cuts]
    for i, (name, work, context, right) in enumerate(cuts):
        if name != domain:
            continue
        # All choices have about the same number of tokens: otherwise the shortest is mostly the likeliest.
        near = [cut for cut, size in zip(cuts, sizes, strict=True) if abs(size - sizes[i]) <= 1]
        if other_domains:
            pool = [(d, rest) for d, _, _, rest in near if d != domain]
        else:
            pool = [(rest, rest) for d, w, _, rest in near if d == domain and w != work]
        drawn: dict[str, str] = {}  # one per other domain, or one of each text
        for j in permutation(len(pool), "pool", domain, i):
            drawn.setdefault(*pool[j])
        wrong = list(drawn.values())[:3]
        if len({right, *wrong}) == 4:
            yield {"context": context, "choices": [right, *wrong], "domain": domain}


def _cloze(domain: str, works: Works, count: CountTokens) -> Iterator[Item]:
    ends = []
    for _, sentence in _sentences(works, 1):
        context, _, word = sentence.rpartition(" ")
        if re.fullmatch(r"[a-z]{4,}[.!?]", word) and 12 <= count(context) <= CONTEXT_TOKENS:
            ends.append((context, word[:-1] + "."))
    # Wrong words are drawn as often as they occur and have as many tokens as the right one, so that neither
    # how common nor how long a word is gives the answer away.
    pools: dict[int, list[str]] = {}
    for _, word in ends:
        pools.setdefault(count(" " + word), []).append(word)
    for i, (context, right) in enumerate(ends):
        pool = pools[count(" " + right)]
        drawn = dict.fromkeys(pool[j] for j in permutation(len(pool), "words", domain, i))
        wrong = [word for word in drawn if word != right][:3]
        if len(wrong) == 3:
            yield {"context": context, "choices": [right, *wrong], "domain": domain}


def _orders(domain: str, works: Works, count: CountTokens) -> Iterator[Item]:
    for i, (_, sentence) in enumerate(_sentences(works, 0)):
        cut = _cut(sentence, count)
        if cut is None:
            continue
        context, right = cut
        words = right.split()
        places = permutation(len(words) - 2, "order", domain, i)[:3]  # the last word keeps its full stop
        wrong = [" ".join([*words[:p], words[p + 1], words[p], *words[p + 2 :]]) for p in places]
        if len({right, *wrong}) == 4:
            yield {"context": context, "choices": [right, *wrong], "domain": domain}


def _definitions(works: Works, count: CountTokens) -> Iterator[Item]:
    lines = [line for documents in works.values() for text in documents for line in text.split("\n")]
    parts = [line.partition(": ") for line in lines]
    # A word with several meanings would have several right answers.
    meanings = Counter(name.lower() for names, _, _ in parts for name in names.split(", "))
    entries = [
        (names, gloss)
        for names, gloss in ((names, text.split(";")[0].strip()) for names, _, text in parts)
        if all(meanings[name.lower()] == 1 for name in names.split(", "))
        and 5 <= count(" " + gloss) <= CHOICE_TOKENS
    ]
    glosses = list(dict.fromkeys(gloss for _, gloss in entries))
    for i in permutation(len(entries), "entries"):
        names, right = entries[i]
        same_size = [g for g in glosses if g != right and abs(count(g) - count(right)) <= 3]
        wrong = [same_size[j] for j in permutation(len(same_size), "glosses", names)[:3]]
        if len(wrong) == 3 and count(names) <= CONTEXT_TOKENS:
            yield {"context": f"{names}:", "choices": [right, *wrong], "domain": "dictionary"}
