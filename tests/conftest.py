"""What holds for every test: no network, caches and stores of its own, one seed, few threads."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

# Before torch, transformers and datasets are imported anywhere, because they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes that tests start

import numpy as np
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when it is imported: kernels then run on the CPU

# A shell makes what it starts in the background deaf to Ctrl-C, and so would be the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SEED = 0
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_home: Path | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Point caches and stores to a temporary folder, which workers and the commands that tests start inherit."""
    global _home
    if hasattr(config, "workerinput"):
        return
    _home = Path(tempfile.mkdtemp(prefix="libmoe-tests-"))
    os.environ["LIBMOE_CACHE"] = str(_home / "libmoe")
    os.environ["HF_HOME"] = str(_home / "huggingface")
    os.environ["LIBMOE_RESULTS"] = str(_home / "results.db")
    os.environ["LIBMOE_REGISTRY"] = str(_home / "registry")


def pytest_unconfigure() -> None:
    if _home is not None:
        shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The folder LIBMOE_CACHE points to while the tests run; removed when they end."""
    folder = Path(os.environ["LIBMOE_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed Python, numpy and torch before each test, so that no test depends on which ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a connection to anything but this machine fail, with the address in the message."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in _LOOPBACK:
            raise OSError(f"tests do not use the network, and this one connects to {address[0]}:{address[1]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
