"""What a routing trace holds.

A trace is a folder: ``trace.json`` (what was traced), ``tokens/*.parquet`` (one row for each token) and
``routing/*.parquet`` (one row for each token and MoE layer).  Splitting them keeps what a token is, which never
changes from layer to layer, from being written again for each layer and expert: a million tokens through 16 layers
take a few hundred megabytes.

``tokens``:

=========== ======= =========================================================================================
uid         int64   number of the token in the trace; increasing, with gaps where tokens were left out
forward     int32   number of the forward pass, from 0
sequence    int64   number of the sequence (or packed document) in the trace; generation continues its prompt's
position    int32   place of the token in its sequence
token       int32   token id, or -1 when the model was not called with ids
decode      bool    whether the token came one at a time, after its prompt
<side>      int32   one column for each side input asked for (``domain``, ``task``, ``iteration``, ...)
=========== ======= =========================================================================================

``routing``:

=========== =============== =================================================================================
uid         int64           the token
layer       int16           index of the MoE layer
expert      list<int16>     its experts, heaviest first
weight      list<float32>   weights of their outputs (mixing mass for soft and merging plans)
kept        list<bool>      false where capacity dropped the assignment; null where none of the token's was
entropy     float32         entropy in nats of the router's scores, made to sum to 1; null without scores
margin      float32         its largest score minus the second largest; null without scores
scores      list<float16>   the router's scores of all N experts, made to sum to 1, for a sample of tokens; else null
=========== =============== =================================================================================

``trace.json`` has ``schema``, ``complete`` (false while it is written, or when writing was cut short), ``rows`` and
``num_tokens``, ``side`` (names of side columns) with ``labels`` for their values, ``layers`` (by index: number of
experts), and what the caller added (``model``, ``checkpoint``, ``tokenizer``, ...).
"""

from __future__ import annotations

from typing import Any

from libmoe.core.errors import ConfigError

SCHEMA = 2
"""Raised with every change that older readers would misread."""

TOKEN_TYPES = {
    "uid": "int64", "forward": "int32", "sequence": "int64", "position": "int32", "token": "int32", "decode": "bool",
}  # fmt: skip
ROUTING_TYPES = {
    "uid": "int64", "layer": "int16", "expert": "list<int16>", "weight": "list<float32>", "kept": "list<bool>",
    "entropy": "float32", "margin": "float32", "scores": "list<float16>",
}  # fmt: skip


def arrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("routing traces need pyarrow: pip install 'libmoe[trace]'") from None
    return pyarrow, pyarrow.parquet


def arrow_type(name: str) -> Any:
    """The arrow type called ``name`` above."""
    pa, _ = arrow()
    simple = {
        "bool": pa.bool_(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float16": pa.float16(),
        "float32": pa.float32(),
    }  # fmt: skip
    inner = name.removeprefix("list<").removesuffix(">")
    return simple[name] if inner == name else pa.list_(simple[inner])


def token_schema(side: tuple[str, ...] = ()) -> Any:
    pa, _ = arrow()
    columns = TOKEN_TYPES | dict.fromkeys(side, "int32")
    return pa.schema([(name, arrow_type(kind)) for name, kind in columns.items()])


def routing_schema() -> Any:
    pa, _ = arrow()
    return pa.schema([(name, arrow_type(kind)) for name, kind in ROUTING_TYPES.items()])
