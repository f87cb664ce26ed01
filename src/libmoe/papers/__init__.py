"""The catalogue of papers this library hosts: what each is, what realises it, how far it is built."""

from __future__ import annotations

from libmoe.papers.catalogue import coverage, paper, papers, search
from libmoe.papers.consistency import verify
from libmoe.papers.entry import KINDS, STATUSES, Paper
from libmoe.papers.render import render_table, to_json

__all__ = [
    "KINDS",
    "STATUSES",
    "Paper",
    "coverage",
    "paper",
    "papers",
    "render_table",
    "search",
    "to_json",
    "verify",
]
