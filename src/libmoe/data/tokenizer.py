"""Tokenizers: the embedded byte-level BPE, one from a folder or hub, or one trained on a corpus.

The embedded tokenizer has 2,048 tokens: small enough that the embedding table does not dwarf a laptop-sized
model, and byte-level, so that every text can be encoded and comes back unchanged.  Because tokenizers cut
text differently, losses per token are not comparable between them; compare bits per *byte*.
"""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from libmoe.core.errors import DataError, nearest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from libmoe.data.corpus import Corpus

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
VOCAB_SIZE = 2048


def load_tokenizer(source: str | Path = "embedded") -> PreTrainedTokenizerFast:
    """Load a tokenizer as a transformers ``PreTrainedTokenizerFast``.

    Args:
        source: ``"embedded"``, a ``tokenizer.json`` file, a folder with one (such as a saved model), or the
            name of a model on the Hugging Face hub.

    Raises:
        DataError: nothing usable is found there.
    """
    from tokenizers import Tokenizer

    if str(source) == "embedded":
        with as_file(files("libmoe.data") / "pack" / "tokenizer.json") as file:
            return _wrap(Tokenizer.from_file(str(file)))
    path = Path(source).expanduser()
    if path.is_file():
        try:
            return _wrap(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise DataError(f"{str(path)!r} is not a tokenizer.json file: {error}") from None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except Exception as error:  # missing name, no network, unknown class, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "did you mean 'embedded'?" if nearest(str(source), ["embedded"]) else "'embedded' always works"
        raise DataError(f"cannot load tokenizer {str(source)!r} ({reason:.120}); {hint}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer {str(source)!r} has no fast version (tokenizer.json), which is needed")
    return tokenizer


def train_tokenizer(corpus: Corpus, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Sennrich et al., 2016) on the train split of a corpus.

    The first tokens are ``<|endoftext|>`` (begin and end of a document), ``<|pad|>`` and the 256 bytes, so
    ``vocab_size`` is at least 258.  The result depends on the text and ``vocab_size`` alone.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise DataError(f"vocab_size={vocab_size} is too small; bytes and specials need {len(alphabet) + 2}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    texts = [text for documents in corpus["train"].values() for text in documents]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise DataError(
            f"corpus {corpus.name!r} is too small for vocab_size={vocab_size}; "
            f"it supports {tokenizer.get_vocab_size()}"
        )
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    specials = {} if END_OF_TEXT not in vocabulary else {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    if PAD in vocabulary:
        specials["pad_token"] = PAD
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **specials)


def document_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Return the ids that open and close a document: bos (or eos where there is none) and eos."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
    return (eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id), eos


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides how a document is encoded."""
    content = tokenizer.backend_tokenizer.to_str() + repr(document_tokens(tokenizer))
    return hashlib.sha256(content.encode()).hexdigest()
