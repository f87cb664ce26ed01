"""Chat templates as data, and conversations as token ids of which only the answers are learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.data.loader import IGNORE
from libmoe.data.tokenizer import document_tokens
from libmoe.data.vision.rows import IMAGE, Conversation, Turn
from libmoe.data.vision.tokens import PieceEncoder, with_image_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS = "{eos}"
OWN = "tokenizer"


class TooLongError(DataError):
    """Not even the first turn of a conversation fits."""


@dataclass(frozen=True)
class Template:
    """``start Q middle [lead A end] between Q middle [lead A end] ...``: what is in brackets is learned.

    A model that is asked gets everything up to and with ``middle``.

    Attributes:
        end: what ends an answer; :data:`EOS` stands for the tokenizer's end-of-sequence token.
        own_start: whether ``start`` holds all that a tokenizer would put before a text.
    """

    start: str
    middle: str
    end: str
    between: str
    lead: str = ""
    own_start: bool = False


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = {
    "plain": Template("USER: ", " ASSISTANT:", EOS, "USER: ", lead=" "),
    "vicuna-v1": Template(f"{VICUNA_SYSTEM} USER: ", " ASSISTANT:", EOS, "USER: ", lead=" "),
    "phi3": Template("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>", "\n<|user|>\n"),
}


def find_template(name: str, tokenizer: PreTrainedTokenizerFast) -> Template:
    """A template by name; ``"tokenizer"`` is the tokenizer's own ``chat_template``.

    Raises:
        ConfigError: unknown, or the tokenizer has none, or one that cannot be cut into turns.
    """
    if name == OWN:
        return _own(tokenizer)
    if name not in TEMPLATES:
        raise unknown("chat template", name, [*TEMPLATES, OWN])
    document_tokens(tokenizer)
    template = TEMPLATES[name]
    return replace(template, end=template.end.replace(EOS, tokenizer.eos_token))


def _own(tokenizer: PreTrainedTokenizerFast) -> Template:
    """Render a conversation of four marks and read off what the template puts between them."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer has no chat template of its own; choose one of: {', '.join(TEMPLATES)}"
        )
    marks = [f"\ue000{i}\ue001" for i in range(4)]

    def render(count: int, prompt: bool) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks[:count])]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    try:
        asked, rest = render(1, prompt=True), render(4, prompt=False)
    except Exception as error:  # a template is a program: it raises what it likes
        raise ConfigError(f"the tokenizer's chat template fails: {str(error)[:120]!r}") from error
    pieces = []
    for mark in marks:
        piece, _, rest = rest.partition(mark)
        pieces.append(piece)
    start, spoken, after, again = pieces
    middle = asked.removeprefix(start + marks[0])
    # An answer ends with the first special token behind it; without one the model could never stop.
    special = next((p for p in PieceEncoder(tokenizer).parse(rest) if isinstance(p, int)), None)
    ending = "" if special is None else tokenizer.convert_ids_to_tokens(special)
    end = "".join(rest.partition(ending)[:2]) if ending else tokenizer.eos_token
    regular = asked.startswith(start + marks[0]) and spoken.startswith(middle) and again == spoken
    if not regular or (ending and not after.startswith(end)):
        raise ConfigError(
            "the tokenizer's chat template writes later turns otherwise than the first, so that turns cannot be "
            f"cut apart; choose one of: {', '.join(TEMPLATES)}"
        )
    return Template(start, middle, end, after.removeprefix(end), spoken.removeprefix(middle), own_start=True)


class ChatEncoder:
    """Turns conversations into ids and labels.

    Questions with the words around them are one piece and answers another; each is encoded by itself, so that its
    ids do not depend on other turns and a prompt is encoded in training as it is when the model is asked.

    Args:
        tokenizer: gets the image token if it lacks it (:func:`~libmoe.data.vision.tokens.with_image_token`).
        template: name of a chat template, see :func:`find_template`.
        image_tokens: how many tokens an image takes (patches that the model's projector hands over).
        max_length: most tokens of a row; whole turns are cut off from the end.

    Raises:
        ConfigError: an unusable template or size.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str = "plain",
        *,
        image_tokens: int,
        max_length: int,
    ) -> None:
        if image_tokens < 1 or max_length < 2:
            raise ConfigError(f"image_tokens={image_tokens} or max_length={max_length} is not positive")
        self.tokenizer = with_image_token(tokenizer)
        self.template = find_template(template, self.tokenizer)
        self.image_tokens, self.max_length = image_tokens, max_length
        self.image_id: int = self.tokenizer.convert_tokens_to_ids(IMAGE)
        self._encoder = PieceEncoder(self.tokenizer)
        self._start, self._middle, self._end, self._between = (
            self._encoder.parse(getattr(self.template, name))
            for name in ("start", "middle", "end", "between")
        )
        bos = self.tokenizer.bos_token_id
        adds_bos = bos is not None and self.tokenizer.encode("")[:1] == [bos]
        self._bos = [bos] if adds_bos and not self.template.own_start else []

    def __call__(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels (-100: not learned), each int64 [tokens].

        Raises:
            TooLongError: the first turn does not fit into ``max_length`` tokens.
            DataError: a conversation without a turn, or with an image and not exactly one place for it.
        """
        has_image = conversation.image is not None
        if not conversation.turns or (has_image and conversation.turns[0].question.count(IMAGE) != 1):
            raise DataError(
                f"row {conversation.name!r} needs a turn, and {IMAGE} once in its first question if it has an image"
            )
        ids, learned = list(self._bos), [False] * len(self._bos)
        for number, turn in enumerate(conversation.turns):
            question = self._question(turn, not number, has_image)
            answer = self._encoder.encode([self.template.lead + turn.answer], first=False)
            answer += self._encoder.encode(self._end, first=False)
            if len(ids) + len(question) + len(answer) > self.max_length:
                if not number:
                    needed = len(ids) + len(question) + len(answer)
                    raise TooLongError(
                        f"row {conversation.name!r} needs {needed} tokens, more than max_length={self.max_length}"
                    )
                break
            ids += question + answer
            learned += [False] * len(question) + [True] * len(answer)
        ids_T = np.array(ids, dtype=np.int64)
        return ids_T, np.where(learned, ids_T, IGNORE)

    def _question(self, turn: Turn, first: bool, has_image: bool) -> list[int]:
        pieces: list[str | int] = [turn.question]
        if first and has_image:
            before, _, after = turn.question.partition(IMAGE)
            pieces = [before, *[self.image_id] * self.image_tokens, after]
        opening = self._start if first else self._between
        filled = (piece for piece in chain(opening, pieces, self._middle) if piece != "")
        return self._encoder.encode(list(filled), first)


def encode(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerFast,
    template: str = "plain",
    *,
    image_tokens: int,
    max_length: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One conversation by a :class:`ChatEncoder` of its own; for many, keep one."""
    encoder = ChatEncoder(tokenizer, template, image_tokens=image_tokens, max_length=max_length)
    return encoder(conversation)
