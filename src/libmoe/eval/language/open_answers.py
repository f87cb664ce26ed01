"""Free answers to open questions: how much of the reference they say."""

from __future__ import annotations

import re

from libmoe.core.errors import DataError

WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['’]\w+)*")
ARTICLES = frozenset({"a", "an", "the"})


def answer_words(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation, and without articles where others are left.

    Hyphens divide words, apostrophes and the points of a number do not.
    """
    words = WORD.findall(text.casefold())
    return [word for word in words if word not in ARTICLES] or words


def token_recall(prediction: str, reference: str) -> float:
    """Share of the reference's words that the prediction says, in any order and however long it is: 0 to 1.

    LLaVA-Med's score of open questions (Li et al., arXiv 2306.00890), which Med-MoE (arXiv 2404.10237) uses.  A
    word that stands twice in the reference counts twice, and is found if the prediction says it once.  In released
    scripts a word counts as often as the *prediction* says it, so that repetition raises the score; here it cannot.

    Raises:
        DataError: the reference holds no word.
    """
    wanted = answer_words(reference)
    if not wanted:
        raise DataError(f"the reference {reference!r} holds no word, so that nothing can be found of it")
    said = set(WORD.findall(prediction.casefold()))
    return sum(word in said for word in wanted) / len(wanted)
