"""The image placeholder as a token, and text encoded so that it never spells a special token by accident."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from libmoe.data.vision.rows import IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODALITIES = ("text", "image", "padding")
"""Names of the values of ``modality_ids``."""
TEXT, PATCH, PADDING = range(len(MODALITIES))


def with_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer with the special token :data:`~libmoe.data.vision.rows.IMAGE`; the one given is not changed.

    Where the token is new, ``len(tokenizer)`` grows by one, and so must the model's embeddings
    (``model.resize_token_embeddings``).  It is saved and loaded with the tokenizer.
    """
    known = tokenizer.get_added_vocab().get(IMAGE)
    if known is not None and tokenizer.added_tokens_decoder[known].special:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    return tokenizer


def image_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ``LlavaConfig.image_token_id`` has to be."""
    return with_image_token(tokenizer).convert_tokens_to_ids(IMAGE)


def padding_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The tokenizer's padding, else its end-of-sequence token: padding is masked and never learned."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


class PieceEncoder:
    """Encodes texts between given token ids as the tokenizer itself would, had it met all as one string.

    The difference: special tokens are given as ids, and text that spells one (``"<image>"``, ``"</s>"``) stays text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._added = tokenizer.added_tokens_decoder
        self._ids: dict[str, str | int] = {token.content: id_ for id_, token in self._added.items()}
        names = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        self._first = _backend(state)
        for part in _parts(state["pre_tokenizer"]):
            # Metaspace may put a space before the first text only, and would take every piece for the first.
            if part.get("prepend_scheme") == "first":
                part["prepend_scheme"] = "never"
        self._later = _backend(state)

    def parse(self, literal: str) -> list[str | int]:
        """A template's own words as texts and ids of the tokenizer's special tokens."""
        pieces = self._split.split(literal) if self._split else [literal]
        return [self._ids.get(piece, piece) for piece in pieces if piece]

    def encode(self, pieces: Sequence[str | int], first: bool) -> list[int]:
        """Ids of the pieces; neighbouring texts are encoded as one.

        Args:
            first: whether these begin the whole sequence.
        """
        ids: list[int] = []
        place = 0
        for is_id, run in groupby(pieces, key=lambda piece: isinstance(piece, int)):
            members: list[Any] = list(run)
            place += len(members)
            if is_id:
                ids += members
                continue
            text = "".join(map(str, members))
            if ids and self._strips(ids[-1], "rstrip"):
                text = text.lstrip()
            if place < len(pieces) and self._strips(pieces[place], "lstrip"):
                text = text.rstrip()
            backend = self._later if ids or not first else self._first
            ids += backend.encode(text, add_special_tokens=False).ids
        return ids

    def _strips(self, id_: str | int, side: str) -> bool:
        """Whether a special token takes the white space at one side of it away, as some do in their tokenizers."""
        return id_ in self._added and getattr(self._added[id_], side)


def _backend(state: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend


def _parts(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is not None:
        yield pre_tokenizer
        for part in pre_tokenizer.get("pretokenizers", ()):
            yield from _parts(part)
