"""Which experts the documents of a task use: prompt and right answer once more through the model, with recorders.

``routing/TASK.parquet`` has one row for each document, layer and expert:

=========== ======= =====================================================================================
doc_id      int64   number of the document in the task's file, as in the samples
layer       int16   index of the MoE layer
expert      int16   expert
assignments int32   how often the expert was chosen for a token of the document and computed it
dropped     int32   how often it was chosen and capacity dropped the assignment
weight      float32 sum of the weights of the expert's outputs (mixing mass for soft plans)
tokens      int32   tokens of the document that this layer saw, padding not counted
=========== ======= =====================================================================================

``routing/TASK.tokens``, where it is asked for, is a trace (:mod:`libmoe.analysis.trace`) of every decision with the
token column ``document``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import libmoe.core.context as context
from libmoe.analysis.trace import TraceRecorder, assignments
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import write_atomically
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.heldout import evaluating
from libmoe.layers import moe_layers

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing
    from libmoe.eval.harness.lm import Scorer

Columns = dict[str, np.ndarray]

_TYPES = {
    "doc_id": np.int64, "layer": np.int16, "expert": np.int16, "assignments": np.int32, "dropped": np.int32,
    "weight": np.float32, "tokens": np.int32,
}  # fmt: skip


class _Document(NamedTuple):
    """Token ids of a document: the prompt and the right answer."""

    number: int
    prompt: list[int]
    answer: list[int]


def trace_samples(
    model: nn.Module,
    tokenizer: Any,
    folder: str | Path,
    task: str,
    count: int,
    batch_size: int,
    *,
    tokens: bool = False,
) -> Path | None:
    """Write the routing of the first ``count`` scored documents of a task; a file that has them is kept.

    Text and tokens are those that the harness scored, with the last token, cut on the left to the model's window.
    Batches are padded on the right under an attention mask, so that a document's routing does not depend on the others
    unless the method makes it so (:func:`libmoe.eval.flags.flags_of`).

    Args:
        folder: an evaluation folder with samples of the task.
        batch_size: documents per forward pass; halved when memory does not suffice.
        tokens: write every decision too.

    Returns:
        The file; ``None`` for a dense model and for a task without scored documents.

    Raises:
        DataError: memory does not suffice for a single document.
    """
    if not list(moe_layers(model)):
        return None
    from libmoe.core.memory import out_of_memory
    from libmoe.eval.harness.driver import quiet
    from libmoe.eval.harness.lm import Scorer

    folder = Path(folder)
    rows = SampleFile(folder / "samples" / task).read(["doc_id", "target", "arguments", "responses", "error"])
    chosen = list(islice((row for row in rows if row["error"] is None), count))
    if not chosen:
        return None
    path, trace_path = folder / "routing" / f"{task}.parquet", folder / "routing" / f"{task}.tokens"
    if _holds(path, [row["doc_id"] for row in chosen]) and (
        not tokens or (trace_path / "trace.json").is_file()
    ):
        return path
    with quiet():
        scorer = Scorer(model, tokenizer, batch_size)
    documents = [_Document(row["doc_id"], *_encode(scorer, *right_answer(row))) for row in chosen]
    while True:
        try:
            with TraceRecorder(trace_path, side=("document",)) if tokens else nullcontext() as trace:
                columns = _run(scorer, documents, batch_size, trace)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if batch_size == 1:
                raise DataError(
                    f"memory does not suffice to trace a document of {task}; shorten prompts"
                ) from error
            batch_size //= 2
    _write(path, columns)
    return path


def read_routing(path: str | Path) -> Columns:
    """Columns of a file that :func:`trace_samples` wrote.

    Raises:
        DataError: it is missing or no such file.
    """
    _, parquet = _pyarrow()
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no routing at {path}; write it with `libmoe eval MODEL --trace DOCUMENTS`")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None
    missing = [name for name in _TYPES if name not in table.column_names]
    if missing:
        raise DataError(f"{path} holds no routing of documents: column {missing[0]!r} is missing")
    return {name: table[name].to_numpy() for name in table.column_names}


def right_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and right answer of a sample; the answer is empty where the sample does not say what is right.

    Where the choices are prompts with one continuation (WinoGrande), samples do not say which one is right; the one
    that the model finds likeliest is taken.
    """
    asked, target = row["arguments"], row["target"]
    first = asked[0]
    if len(first) == 1:  # a text that is scored as a whole
        return "", first[0]
    prompt, continuation = first[:2]
    if not isinstance(continuation, str):  # text is generated, this says how
        wanted = target[0] if isinstance(target, list) and target else target
        if not isinstance(wanted, str):
            return prompt, ""
        spaced = prompt[-1:].isspace() or wanted[:1].isspace()
        return prompt, wanted if spaced else f" {wanted}"
    if len(asked) == 1:
        return prompt, continuation
    if len({arguments[1] for arguments in asked}) == 1:
        likelihood = [answers[0][0] for answers in row["responses"]]
        return tuple(asked[likelihood.index(max(likelihood))][:2])
    number = target[0] if isinstance(target, list) and target else target
    if isinstance(number, str):
        same = (i for i, arguments in enumerate(asked) if arguments[1].strip() == number.strip())
        number = next(same, None)
    if not isinstance(number, int) or not 0 <= number < len(asked):
        return prompt, ""
    return asked[number][0], asked[number][1]


def _encode(scorer: Scorer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids as the harness makes them."""
    if prompt:
        return scorer._encode_pair(prompt, answer)
    start, ids = scorer.prefix_token_id, scorer.tok_encode(answer, add_special_tokens=False)
    return [start], ids[1:] if ids[:1] == [start] else ids


def _run(scorer: Scorer, documents: Sequence[_Document], size: int, trace: TraceRecorder | None) -> Columns:
    waiting = sorted(documents, key=lambda d: -len(d.prompt) - len(d.answer))
    parts = []
    with evaluating(scorer.model):
        for start in range(0, len(waiting), size):
            batch = waiting[start : start + size]
            tally = _Tally([document.number for document in batch])
            numbers = torch.tensor(tally.numbers, device=scorer.device)
            recorders = [tally] if trace is None else [tally, trace]
            with context.options(side={"document": numbers}, recorders=recorders):
                # Without the head, whose logits would be the largest tensor of all.
                scorer.model.base_model(**_inputs(scorer, batch), use_cache=False)
            parts += list(tally.columns())
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _TYPES}
    order = np.lexsort((joined["expert"], joined["layer"], joined["doc_id"]))
    return {name: joined[name][order].astype(kind) for name, kind in _TYPES.items()}


def _inputs(scorer: Scorer, batch: Sequence[_Document]) -> dict[str, Tensor]:
    longest = scorer.max_length
    if scorer.backend == "causal":
        ids, mask = _padded([(d.prompt + d.answer)[-longest:] for d in batch], scorer.device)
        return {"input_ids": ids, "attention_mask": mask}
    start = scorer.model.config.decoder_start_token_id
    ids, mask = _padded([d.prompt[-longest:] for d in batch], scorer.device)
    decoder_ids, decoder_mask = _padded([[start, *d.answer][:longest] for d in batch], scorer.device)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": decoder_ids,
        "decoder_attention_mask": decoder_mask,
    }


def _padded(sequences: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """``ids_BL`` filled up with zeros on the right, and the mask that says so."""
    longest = max(len(ids) for ids in sequences)
    ids_BL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences], device=device)
    size_B = torch.tensor([len(ids) for ids in sequences], device=device)
    return ids_BL, (torch.arange(longest, device=device) < size_B.unsqueeze(1)).long()


class _Tally:
    """Recorder: what the experts of each layer did for each document of one batch."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self._sums: dict[int, Tensor] = {}  # by layer: [3, B, N]
        self._tokens: dict[int, Tensor] = {}

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        plan, (batch, length) = routing.plan, ctx.batch_shape
        token_A, expert_A, weight_A, kept_A = assignments(plan)
        mask_T = ctx.mask_T
        if mask_T is None:
            mask_T = torch.ones(batch * length, dtype=torch.bool, device=token_A.device)
        real_A = mask_T[token_A]
        place_A = token_A // length * plan.num_experts + expert_A
        values = (real_A & kept_A, real_A & ~kept_A, weight_A * (real_A & kept_A))
        size = batch * plan.num_experts
        sums = [torch.bincount(place_A, value.double(), size).view(batch, -1) for value in values]
        # A layer that the model calls repeatedly (weights shared over depth) adds up.
        self._sums[ctx.index] = self._sums.get(ctx.index, 0) + torch.stack(sums).cpu()
        self._tokens[ctx.index] = self._tokens.get(ctx.index, 0) + mask_T.view(batch, length).sum(1).cpu()

    def columns(self) -> Iterator[Columns]:
        """One part for each layer."""
        for layer, sums in self._sums.items():
            _, batch, experts = sums.shape
            assigned, dropped, weight = (s.reshape(-1).numpy() for s in sums)
            yield {
                "doc_id": np.repeat(self.numbers, experts),
                "layer": np.full(batch * experts, layer),
                "expert": np.tile(np.arange(experts), batch),
                "assignments": assigned,
                "dropped": dropped,
                "weight": weight,
                "tokens": np.repeat(self._tokens[layer].numpy(), experts),
            }


def _holds(path: Path, numbers: list[int]) -> bool:
    """Whether a finished file has just these documents."""
    if not path.is_file():
        return False
    try:
        return set(read_routing(path)["doc_id"].tolist()) == set(numbers)
    except DataError:
        return False


def _write(path: Path, columns: Columns) -> None:
    pyarrow, parquet = _pyarrow()
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("routing is kept in parquet: pip install 'libmoe[trace]'") from None
    return pyarrow, pyarrow.parquet
