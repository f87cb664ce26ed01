"""Our model behind lmms-eval's own model classes, so that prompts, image tokens and generation are theirs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from libmoe.core.errors import CheckpointError, DataError
from libmoe.eval.harness.documents import reason
from libmoe.models import load_any

LLAVA = ("llava", "llava_next", "llava_onevision")
"""Model types of lmms-eval's LLaVA classes; its class for any transformers model asks the others."""


class Adapter:
    """Asks a model through a class of lmms-eval.

    Attributes:
        model_name: name of the class in lmms-eval; tasks choose prompts by it.
        batch_size: requests per forward pass; 1 for LLaVA, whose class takes no more.
        prefers: form of requests, ``chat`` (messages) or ``simple`` (a prompt).
    """

    def __init__(self, model: Any, source: str, batch_size: int) -> None:
        from transformers import AutoProcessor

        self.model, self.source = model, source
        self.notes: list[str] = []
        self._classes: dict[str, Any] = {}
        self._failure: Exception | None = None
        self._watch_generation()
        kind = str(model.config.model_type)
        try:
            processor = AutoProcessor.from_pretrained(source)
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(f"the processor of {source} cannot be loaded: {reason(error)}") from error
        if not hasattr(processor, "image_processor"):
            raise CheckpointError(
                f"{source} ({kind}) takes no images; vision-language tasks need a model that does"
            )
        self.model_name = "llava_hf" if kind in LLAVA else "huggingface"
        self.batch_size = 1 if kind in LLAVA else batch_size
        self.prefers = "chat" if processor.chat_template or kind not in LLAVA else "simple"
        if self.prefers == "simple":
            self.notes.append(
                f"{source} has no chat template; lmms-eval's own for LLaVA 1.5 (Vicuna) is used"
            )

    @classmethod
    def open(cls, source: str, dtype: str | None, batch_size: int) -> Adapter:
        """The model saved in the folder ``source`` (or of that name on the hub), on the GPU where there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_any(source, getattr(torch, dtype) if dtype else None)
        if not hasattr(model, "generate") or not model.can_generate():
            raise CheckpointError(
                f"{type(model).__name__} generates no text; vision-language tasks need that"
            )
        return cls(model.to(device), source, batch_size)

    def of(self, form: str) -> Any:
        """The object of lmms-eval that takes requests of this form."""
        if form not in self._classes:
            self._classes[form] = self._build(form)
        return self._classes[form]

    def show(self, name: str, dataset: Any) -> None:
        """Let the model's classes find the documents of a task."""
        for form in ("chat", "simple"):
            if form in self._classes:
                self._classes[form].task_dict[name] = dataset

    def ask(self, form: str, kind: str, requests: Sequence[Any], seed: int) -> list[Any]:
        """One answer (text, or a pair of a loss and whether it was the greedy choice) per request, as one batch.

        Raises:
            Exception: whatever went wrong while generating, which lmms-eval's classes take for an empty answer.
        """
        from lmms_eval.api.instance import unwrap_generation_output

        # The classes change generation arguments in place; the originals are needed if the batch is asked again.
        batch = []
        for request in requests:
            twin = copy.copy(request)
            twin.arguments = tuple(dict(a) if isinstance(a, dict) else a for a in request.args)
            batch.append(twin)
        self._failure = None
        text = repr((seed, kind, [(r.task_name, r.doc_id, r.idx) for r in batch])).encode()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))
            answers = getattr(self.of(form), kind)(batch)
        if self._failure is not None:
            raise self._failure
        if len(answers) != len(requests):
            raise DataError(f"lmms-eval's class gave {len(answers)} answers to {len(requests)} requests")
        return [a if isinstance(a, tuple) else unwrap_generation_output(a)[0] for a in answers]

    def shrink(self, size: int, error: Exception) -> None:
        """Go on with half as many requests a batch.  Raises DataError where one was too much."""
        if size == 1:
            raise DataError("memory does not suffice for a single request; use a smaller model") from error
        self.batch_size = size // 2
        for made in self._classes.values():
            made.batch_size_per_gpu = self.batch_size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notes.append(f"out of memory with batches of {size}; went on with {self.batch_size}")

    def _build(self, form: str) -> Any:
        """One of lmms-eval's classes, whose constructor is handed our model instead of loading one."""
        given = _Given(self.model)
        device = str(next(self.model.parameters()).device)
        module = importlib.import_module(f"lmms_eval.models.{form}.{self.model_name}")
        if self.model_name == "llava_hf":
            simple = importlib.import_module("lmms_eval.models.simple.llava_hf")
            with mock.patch.dict(simple.model_map, {self.model.config.model_type: given}):
                made = module.LlavaHf(pretrained=self.source, device=device, batch_size=1)
            made._image_processor = _Processor(made._image_processor)
            silence(simple)
        else:
            names = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
            with contextlib.ExitStack() as stack:
                for name in names:
                    stack.enter_context(mock.patch.object(module, name, given))
                made = module.Huggingface(
                    pretrained=self.source, device=device, device_map=device, batch_size=self.batch_size
                )
            made.processor = _Processor(made.processor)
        silence(module)
        return made

    def _watch_generation(self) -> None:
        """Remember what generating raises: lmms-eval's classes only log it."""
        generate = self.model.generate

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return generate(*args, **kwargs)
            except Exception as error:
                self._failure = error
                raise

        self.model.generate = watched


class _Given:
    """Stands for a class of transformers while one of lmms-eval is constructed."""

    _model_mapping: dict[str, Any] = {}  # noqa: RUF012, looked up by lmms-eval

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        return self.model


class _Processor:
    """A processor that pads before the prompt, and is asked for the images that the text has, no more and no less.

    lmms-eval's classes name media that a request does not have, which processors refuse.  To find where a continuation
    begins they pass the prompt alone, without its images: those of the call before are meant.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._images: Any = None
        processor.tokenizer.padding_side = "left"

    def __call__(self, **kwargs: Any) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if k not in ("images", "videos", "audios") or v}
        if "images" in kwargs:
            self._images = kwargs["images"]
        elif str(getattr(self._processor, "image_token", None)) in str(kwargs["text"]):
            kwargs["images"] = self._images
        return self._processor(**kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def silence(module: Any) -> None:
    """Take the progress bars from a module of lmms-eval."""
    import tqdm

    def bar(*args: Any, **kwargs: Any) -> Any:
        return tqdm.tqdm(*args, **(kwargs | {"disable": True}))

    module.tqdm = bar


@contextlib.contextmanager
def seeded(seed: int, number: int) -> Iterator[None]:
    """Python's random numbers for one document: some tasks guess where an answer names no choice."""
    import random

    state = random.getstate()
    random.seed(f"{seed}:{number}")
    try:
        yield
    finally:
        random.setstate(state)
