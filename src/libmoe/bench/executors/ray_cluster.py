"""Cells on a Ray cluster, or on a private one of this machine: each is one remote task."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.executors.base import MODEST, Executor, Finished, Resources, Say, Started, Tick
from libmoe.bench.executors.local import share
from libmoe.bench.executors.ray_work import Work
from libmoe.bench.executors.ray_worker import Board, attend
from libmoe.bench.pool import environment
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_atomically
from libmoe.core.plugins import describe
from libmoe.train.stopping import StopOnSignal

OBJECT_STORE = 100 << 20
"""Bytes of shared memory of a private cluster; all that passes through it are rows and metrics."""
KNOCK = 20.0
"""Seconds that a cluster gets to answer."""


class RayCluster(Executor):
    """Runs as many cells at once as the cluster has room for.

    Cells work in the folder of the grid where their machine sees it; from others their files are sent.

    Args:
        address: of a running cluster, ``auto`` for the one of this machine, or ``local`` for a private one that ends
            with the command.
        workers: cells at once of a private cluster.

    Raises:
        ConfigError: ray is not installed.
    """

    def __init__(
        self, address: str, resources: Resources = MODEST, *, workers: int = 2, say: Say = print
    ) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError('--ray needs ray, which is not installed: pip install "libmoe[ray]"') from None
        self.ray, self.address, self.resources, self.say = ray, address, resources, say
        self.here = address == "local"
        self.count, threads = share(workers, resources)
        self.threads = threads if address == "local" else resources.cpus or 1
        self.work: Work | None = None

    def metrics(self, spec: CellSpec) -> dict[str, Any]:
        return {} if self.work is None else self.work.news.get(spec.run_dir, {})

    def run(
        self, specs: Sequence[CellSpec], folder: Path, *, started: Started, finished: Finished, tick: Tick
    ) -> None:
        if not specs:
            return
        # Ray turns what a signal raises inside its calls into an exit of its own; so signals are looked at between.
        with self._connected(), _mark(folder) as mark, StopOnSignal() as stopping:
            board = self.ray.remote(num_cpus=0)(Board).options(scheduling_strategy=self._this_node()).remote()
            work = self.work = Work(self.ray, self.remote(attend), board, specs, mark)
            try:
                while work.waiting or work.running:
                    work.submit()
                    over = work.collect()
                    for spec in work.hear():
                        started(spec)
                    for spec, row in over:
                        finished(spec, row)
                    tick()
                    if stopping.signal:
                        raise _interruption(stopping.signal)
            except BaseException:
                work.stop()
                raise
        tick()

    def remote(self, function: Any) -> Any:
        """``function`` as a task that gets what a cell needs.  Lost ones are counted and sent anew by the command."""
        memory = {"memory": self.resources.memory_bytes} if self.resources.memory_bytes else {}
        return self.ray.remote(num_cpus=self.threads, num_gpus=self.resources.gpus, max_retries=0, **memory)(
            function
        )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Join the cluster; a connection that is there already is used and left."""
        ray = self.ray
        if ray.is_initialized():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        try:
            if self.address == "local":
                with _python_path():
                    ray.init(
                        address="local",
                        num_cpus=self.count * self.threads,
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
            else:
                self._knock()
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises the class itself, among others
            what, advice = (
                ("Ray does not start", "try again when this machine is less busy, or leave --ray out")
                if self.here
                else ("no cluster answers", "start one with 'ray start --head', or use --ray local")
            )
            raise ConfigError(f"--ray {self.address}: {what} ({describe(error)[:200]}); {advice}") from None
        try:
            if threading.current_thread() is threading.main_thread():
                # Ray's own handler ends the process with another exit code.
                signal.signal(signal.SIGTERM, before)
            self._check_room()
            yield
        finally:
            ray.shutdown()

    def _knock(self) -> None:
        """Ask whether anybody is at the address at all; Ray itself would go on asking for minutes."""
        host, colon, port = self.address.removeprefix("ray://").rpartition(":")
        if colon:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()

    def _this_node(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)

    def _check_room(self) -> None:
        """A cell that no machine has room for waits, as a cluster may grow; it should not do so in silence."""
        wanted = {
            "CPU": self.threads,
            "GPU": self.resources.gpus,
            "memory": self.resources.memory_bytes,
        }
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(what, 0) >= amount for what, amount in wanted.items()) for node in nodes):
            asked = ", ".join(f"{amount:g} {what}" for what, amount in wanted.items() if amount)
            self.say(f"No machine of the cluster has {asked}: cells wait until one joins (Ctrl-C leaves).")


def _interruption(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """A file in ``folder`` that no machine can have by chance."""
    file = folder.absolute() / f".seen-{secrets.token_hex(16)}"
    write_atomically(file, b"")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _python_path() -> Iterator[None]:
    """The processes of a private cluster import what this process does, and report to nobody."""
    changed = {"PYTHONPATH": environment(1)["PYTHONPATH"], "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
