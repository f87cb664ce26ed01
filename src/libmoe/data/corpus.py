"""A corpus: documents by split and domain, from the embedded pack, local files or a hub data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from libmoe.core.errors import DataError, nearest
from libmoe.data.splitting import SPLITS, split_by_content

Documents = dict[str, list[str]]  # domain -> documents


@dataclass(frozen=True)
class Corpus:
    """Text documents by split and domain.

    ``corpus["train"]`` is an ordered dictionary from domain to list of documents; every split has the same
    domains in the same order, so a domain's place in ``domains`` is its id everywhere else.
    """

    name: str
    splits: dict[str, Documents]
    licences: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, split: str) -> Documents:
        if split not in self.splits:
            raise DataError(f"corpus {self.name!r} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    @property
    def domains(self) -> list[str]:
        return list(next(iter(self.splits.values())))

    def select(self, domains: Sequence[str]) -> Corpus:
        """Keep only the named domains, in the given order; raise ``DataError`` for an unknown one."""
        for domain in domains:
            if domain not in self.domains:
                guess = nearest(domain, self.domains)
                hint = f"did you mean {guess!r}?" if guess else f"choose from: {', '.join(self.domains)}"
                raise DataError(f"unknown domain {domain!r} of corpus {self.name!r}; {hint}")
        splits = {split: {d: documents[d] for d in domains} for split, documents in self.splits.items()}
        return Corpus(self.name, splits, {d: v for d, v in self.licences.items() if d in domains})

    def fingerprint(self) -> str:
        """SHA-256 over all splits, domains and documents, in order: equal only for equal content."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split, documents in self.splits.items():
            for domain, texts in documents.items():
                # Each item is preceded by its length, so that moving a border changes the hash.
                for item in (split, domain, *texts):
                    data = item.encode()
                    digest.update(b"%d:" % len(data) + data)
                digest.update(b"|")
        return digest.hexdigest()

    @classmethod
    def from_documents(
        cls, documents: Mapping[str, Iterable[str]], *, name: str = "documents", heldout: float = 0.05
    ) -> Corpus:
        """Build a corpus from documents in memory, split by content hash."""
        found = {"train": {domain: list(texts) for domain, texts in documents.items()}}
        return cls(name, complete_splits(found, name, heldout))


def load_corpus(
    source: str | Path = "embedded",
    *,
    domains: Sequence[str] | None = None,
    split: str | None = None,
    text_field: str = "text",
    domain_field: str | None = None,
    heldout: float = 0.05,
) -> Corpus:
    """Load a corpus.

    Args:
        source: ``"embedded"`` (eight domains of real text, no network needed), ``"hf:<dataset>[:config]"``
            (a Hugging Face data set), or a local file or folder of ``.txt .md .rst .py`` (cut into documents
            at paragraph borders) or ``.jsonl .jsonl.gz .json .parquet`` (one document per record).
            In a folder each file is a domain named by its stem, and each sub-folder is a domain too.  If it
            has files or sub-folders called ``train``, ``validation`` (``valid``, ``val``, ``dev``) and
            ``test``, those are the splits and nothing else in it is read.
        domains: keep only these domains, in this order.
        split: keep only this split.  For a hub data set also a slice of it, such as ``"train[:1%]"``.
        text_field: the field of a record that holds the text.
        domain_field: the field of a record that names its domain, instead of the file's name.
        heldout: what fraction of the distinct documents each held-out split gets where the source has none;
            documents are assigned by their content hash.

    Raises:
        DataError: a missing, empty or malformed source, field, split or domain; the line names the fix.
    """
    from libmoe.data import embedded, sources

    if not 0 < heldout < 0.5:
        raise DataError(f"heldout={heldout} is not a fraction between 0 and 0.5")
    name = str(source)
    if name == "embedded":
        corpus = Corpus(name, *embedded.load_embedded(domains))
    elif name.startswith("hf:"):
        found = sources.read_hub(name, split, text_field, domain_field)
        corpus = Corpus(name, complete_splits(found, name, heldout))
        split = split.partition("[")[0] if split else None
    else:
        found = sources.read_local(Path(source).expanduser(), text_field, domain_field)
        corpus = Corpus(name, complete_splits(found, name, heldout))
    if domains is not None:
        corpus = corpus.select(domains)
    return Corpus(corpus.name, {split: corpus[split]}, corpus.licences) if split else corpus


def complete_splits(found: Mapping[str, Documents], name: str, heldout: float) -> dict[str, Documents]:
    """Check the documents of a source and add the splits it lacks, taken from ``train`` by content hash.

    A source without ``train`` (only a test set, say) is left as it is.
    """
    found = {split: found[split] for split in SPLITS if split in found}
    domains = list(dict.fromkeys(d for documents in found.values() for d in documents))
    splits = {s: {d: _texts(documents.get(d, []), d) for d in domains} for s, documents in found.items()}
    if not any(texts for documents in splits.values() for texts in documents.values()):
        raise DataError(f"corpus {name!r} holds no text; give a source with at least three documents")
    missing = [s for s in reversed(SPLITS) if s not in splits]
    if missing and "train" in splits:
        for domain, texts in splits["train"].items():
            parts = split_by_content(texts, heldout, missing)
            if not parts[missing[0]]:
                raise DataError(
                    f"domain {domain!r} of {name!r} has too few documents to split ({len(set(texts))}); put the "
                    "files of one domain into one sub-folder, or give train, validation and test files"
                )
            for split, part in parts.items():
                splits.setdefault(split, {})[domain] = part
    return {split: splits[split] for split in SPLITS if split in splits}


def _texts(texts: Iterable[str], domain: str) -> list[str]:
    """Drop blank documents and refuse strings that are not Unicode text."""
    kept = [t for t in texts if t.strip()]
    for i, text in enumerate(kept):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"document {i} of domain {domain!r} is not valid Unicode (lone surrogate at character "
                f"{error.start}); clean the source, e.g. with text.encode('utf-8', 'replace').decode()"
            ) from None
    return kept
