"""The harness's scorer for Hugging Face models, with answers that outlive the process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from libmoe.core.errors import DataError
from libmoe.core.memory import out_of_memory
from libmoe.eval.harness.answers import Answers

KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class Scorer(HFLM):
    """``HFLM`` whose answers are stored batch by batch, and whose batches shrink when memory does not suffice.

    Args:
        model: any causal or sequence-to-sequence model of transformers, ours included.
        tokenizer: its tokenizer.
        batch_size: requests per forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        backend = "seq2seq" if getattr(model.config, "is_encoder_decoder", False) else "causal"
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend=backend)
        self.notes: list[str] = []
        self.on_answer: Callable[[int], None] = lambda count: None
        self._answers: Answers | None = None
        self._seed = 0

    def answer(self, kind: str, requests: list[Any], answers: Answers, seed: int) -> list[Any]:
        """One answer per request (an instance of the harness); those in ``answers`` are not computed again.

        Raises:
            DataError: memory does not suffice for a single request.
        """
        self._answers, self._seed, self.cache_hook = answers, seed, _Hook(self)
        try:
            while missing := answers.missing(kind, requests):
                try:
                    getattr(self, kind)(missing, disable_tqdm=True)
                    answers.commit()
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    answers.forget_batch()
                    self._shrink(error)
        finally:
            answers.forget_batch()
            self._answers = None
        return answers.take(kind, requests)

    def _shrink(self, error: BaseException) -> None:
        size = int(self.batch_size)
        if size == 1:
            raise DataError(
                "memory does not suffice for a single request; shorten prompts (fewer shots) or use a smaller model"
            ) from error
        self.batch_size_per_gpu = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notes.append(f"out of memory with batches of {size}; went on with {size // 2}")

    # A call of the model means that the answers so far are those of whole batches.

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self._commit()
        return super()._model_call(*args, **kwargs)

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        self._commit()
        if not kwargs.get("do_sample"):
            return super()._model_generate(context, *args, **kwargs)
        # Samples do not depend on how often the run was interrupted before.
        done = 0 if self._answers is None else self._answers.count
        text = repr((self._seed, done, context.tolist())).encode()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))
            return super()._model_generate(context, *args, **kwargs)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        answers = self._answers
        if answers is None or any(name is not None for name, *_ in requests):
            return super()._loglikelihood_tokens(requests, *args, **kwargs)
        # Windows of long documents: the harness asks for them batch by batch and adds them up itself.
        batch = [_Window((context, continuation)) for _, context, continuation in requests]
        if answers.missing("window", batch):
            found = super()._loglikelihood_tokens(requests, *args, **kwargs)
            for window, value in zip(batch, found, strict=True):
                answers.add("window", window.args, value)
            answers.commit()
        return answers.take("window", batch)

    def _commit(self) -> None:
        if self._answers is not None:
            self._answers.commit()


class _Window:
    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


class _Hook:
    """Where the harness leaves each answer of a batch."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        if self.scorer._answers is not None:
            self.scorer._answers.add(kind, request, answer)
            self.scorer.on_answer(1)
