"""Entities and relations of operating-room scene graphs (MM-OR, arXiv 2503.02579)."""

from __future__ import annotations

ENTITIES = (
    "anaesthetist",
    "anesthesia_equipment",
    "assistant_surgeon",
    "c_arm",
    "circulator",
    "drape",
    "drill",
    "hammer",
    "head_surgeon",
    "instrument",
    "instrument_table",
    "mako_robot",
    "monitor",
    "mps",
    "mps_station",
    "nurse",
    "operating_table",
    "patient",
    "saw",
    "secondary_table",
    "student",
    "tracker",
    "unrelated_person",
)

PREDICATES = (
    "assisting",
    "calibrating",
    "cementing",
    "cleaning",
    "closeTo",
    "cutting",
    "drilling",
    "hammering",
    "holding",
    "lyingOn",
    "manipulating",
    "preparing",
    "sawing",
    "scanning",
    "suturing",
    "touching",
)

SYNONYMS = {
    "anaesthesia_equipment": "anesthesia_equipment",
    "anaesthetist_station": "anesthesia_equipment",
    "anesthetist": "anaesthetist",
    "close": "closeTo",
    "close_to": "closeTo",
    "head_surgent": "head_surgeon",
    "opertating_table": "operating_table",
    "tool": "instrument",
}
"""Other names that occur in annotations and answers, as the benchmark takes them."""

_CANONICAL = {name.lower(): name for name in (*ENTITIES, *PREDICATES)} | SYNONYMS


def canonical(name: str) -> str:
    """The label that ``name`` means, in any case and with blanks for underscores; other names stay as they are."""
    return _CANONICAL.get("_".join(name.lower().split()), name)
