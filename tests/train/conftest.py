"""Tiny recipes and models, and processes that start fast: a server imports torch once and forks workers."""

from __future__ import annotations

import multiprocessing
import random
import runpy
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from libmoe.train.recipe import Recipe, load_recipe

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two domains of a few documents, and ``tokenizer.json``, trained on them."""
    from libmoe.data import load_corpus, train_tokenizer

    folder = tmp_path_factory.mktemp("text")
    words = "the router sends each token to two experts while others rest and nobody knows which will learn".split()
    order = random.Random(0)
    for domain, count in (("prose", 24), ("numbers", 20)):
        (folder / "corpus" / domain).mkdir(parents=True)
        for i in range(count):
            pick = words if domain == "prose" else [str(n) for n in range(40)]
            document = " ".join(order.choice(pick) for _ in range(order.randint(20, 120)))
            (folder / "corpus" / domain / f"{i}.txt").write_text(document)
    tokenizer = train_tokenizer(load_corpus(folder / "corpus"), vocab_size=300)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def recipe(text: Path) -> Callable[..., Recipe]:
    """``recipe("train.steps=3", ...)``: the packaged tiny recipe, six steps of it on a small corpus."""

    def make(*overrides: str) -> Recipe:
        data = [f"data.source={text / 'corpus'}", f"data.tokenizer={text / 'tokenizer.json'}", "data.seq_len=16"]
        small = ["backbone.hidden_size=32", "backbone.intermediate_size=64"]
        short = ["train.steps=6", "train.warmup_steps=2", "train.log_every=1", "train.save_every=2"]
        return load_recipe("tiny", [*data, *small, *short, *overrides])

    return make


@pytest.fixture
def tiny_model(recipe: Callable[..., Recipe]) -> torch.nn.Module:
    from libmoe.train.build import build_model

    return build_model(recipe(), vocab_size=300)


@pytest.fixture(scope="session")
def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["libmoe.train.loop", "transformers.models.llama.modeling_llama"])
    return context


@pytest.fixture
def start(_forkserver: Any) -> Any:
    """``start(recipe, run_dir, ...)``: run worker.py in a process of its own; whatever is left is killed."""
    processes: list[ForkServerProcess] = []

    def begin(recipe: Recipe, run_dir: Path, rank: int = 0, world: int = 1, port: int = 0, **more: Any) -> Any:
        job = {"recipe": recipe, "run_dir": str(run_dir), "rank": rank, "world": world, "port": port, **more}
        process = _forkserver.Process(target=runpy.run_path, args=(str(WORKER), {"JOB": job}))
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def run_together(start: Any) -> Any:
    """``run_together(recipe, run_dir, world)``: as many processes as torchrun would start; all must succeed."""

    def run(recipe: Recipe, run_dir: Path, world: int = 2, **more: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        together = [start(recipe, run_dir, rank, world, port, **more) for rank in range(world)]
        for process in together:
            process.join(timeout=100)
        said = "".join(Path(f"{run_dir}.stderr{rank}").read_text() for rank in range(world))
        assert [p.exitcode for p in together] == [0] * world, said

    return run
