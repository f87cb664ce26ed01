"""Whether the text that trials are judged on is neither trained on nor what the comparison ends with.

Trials are judged on the validation split.  A source without one gets it from its training documents, by content
hash, before anything else sees them (:mod:`libmoe.data.splitting`); there nothing can be in two splits.  A source that
brings its own splits may repeat documents, and then it is told.
"""

from __future__ import annotations

from libmoe.data import load_corpus
from libmoe.data.splitting import content_hash
from libmoe.train.recipe import DataConfig


def shared_documents(data: DataConfig) -> dict[str, int]:
    """How many documents of the validation split are word for word in ``train`` and in ``test``; ``of`` so many."""
    corpus = load_corpus(
        data.source, domains=data.domains, text_field=data.text_field, domain_field=data.domain_field
    )
    hashes = {
        split: [content_hash(text) for texts in documents.values() for text in texts]
        for split, documents in corpus.splits.items()
    }
    judged = hashes["validation"]
    seen = {split: set(hashes[split]) for split in ("train", "test")}
    return {split: sum(h in found for h in judged) for split, found in seen.items()} | {"of": len(judged)}


def describe_shared(shared: dict[str, int]) -> str | None:
    """A warning in one line, or ``None`` where the text is clean."""
    where = [f"{shared[split]} in the {split} split" for split in ("train", "test") if shared[split]]
    if not where:
        return None
    return (
        f"warning: of the {shared['of']} validation documents that tuning is judged on, {' and '.join(where)} too; "
        "take them out of the data"
    )
