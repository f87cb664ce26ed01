"""Cells on a Ray cluster, or on a private one of this machine: each is one remote task."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import libmoe
from libmoe.bench.cell import CellSpec, failed_row
from libmoe.bench.executors.base import MODEST, Executor, Finished, Resources, Say, Started, Tick
from libmoe.bench.executors.local import share
from libmoe.bench.executors.ray_worker import Board, Outcome, Request, attend
from libmoe.bench.executors.transfer import pack, unpack
from libmoe.bench.pool import ATTEMPTS, PATIENCE, environment, lost_row
from libmoe.core.errors import ConfigError, LibMoEError
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
        self.count, threads = share(workers, resources)
        self.threads = threads if address == "local" else resources.cpus or 1
        self.news: dict[str, dict[str, Any]] = {}

    def metrics(self, spec: CellSpec) -> dict[str, Any]:
        return self.news.get(spec.run_dir, {})

    def run(
        self, specs: Sequence[CellSpec], folder: Path, *, started: Started, finished: Finished, tick: Tick
    ) -> None:
        if not specs:
            return
        # Ray turns what a signal raises inside its calls into an exit of its own; so signals are looked at between.
        with self._connected(), _mark(folder) as mark, StopOnSignal() as stopping:
            board = self.ray.remote(num_cpus=0)(Board).options(scheduling_strategy=self._here()).remote()
            work = _Work(self, board, specs, mark)
            try:
                while work.waiting or work.running:
                    work.submit()
                    for spec in work.hear():
                        started(spec)
                    for spec, row in work.collect():
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
        memory = {"memory": self.resources.memory_gb * 1e9} if self.resources.memory_gb else {}
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
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--ray {self.address}: no cluster answers ({describe(error)[:200]}); start one with "
                "'ray start --head', or use --ray local"
            ) from None
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(
                    signal.SIGTERM, before
                )  # Ray's own handler ends the process with another exit code
            self._check_room()
            yield
        finally:
            ray.shutdown()

    def _knock(self) -> None:
        """Ask whether anybody is at the address at all; Ray itself would go on asking for minutes."""
        host, colon, port = self.address.removeprefix("ray://").rpartition(":")
        if colon:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()

    def _here(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)

    def _check_room(self) -> None:
        """A cell that no machine has room for waits, as a cluster may grow; it should not do so in silence."""
        wanted = {
            "CPU": self.threads,
            "GPU": self.resources.gpus,
            "memory": (self.resources.memory_gb or 0) * 1e9,
        }
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(what, 0) >= amount for what, amount in wanted.items()) for node in nodes):
            asked = ", ".join(f"{amount:g} {what}" for what, amount in wanted.items() if amount)
            self.say(f"No machine of the cluster has {asked}: cells wait until one joins (Ctrl-C leaves).")


class _Work:
    """The cells of one command on the cluster: which wait, which are there, what they have said."""

    def __init__(self, cluster: RayCluster, board: Any, specs: Sequence[CellSpec], mark: Path) -> None:
        self.ray, self.cluster, self.board = cluster.ray, cluster, board
        self.specs = list(specs)
        self.task = cluster.remote(attend)
        self.waiting = deque(self._request(number, mark) for number in range(len(specs)))
        self.running: dict[Any, Request] = {}
        self.begun: set[int] = set()
        self.lost = Counter[int]()

    def _request(self, number: int, mark: Path) -> Request:
        spec = self.specs[number]
        run_dir = Path(spec.run_dir).absolute()
        plugins = {path: Path(path).read_bytes() for path in spec.plugins}
        return Request(
            number=number,
            cell=replace(spec, run_dir=str(run_dir)).to_json(),
            cwd=os.getcwd(),
            mark=str(mark),
            version=libmoe.__version__,
            plugins=plugins,
            resumes=run_dir.exists(),
        )

    def submit(self) -> None:
        while self.waiting:
            request = self.waiting.popleft()
            self.running[self.task.remote(request, self.board)] = request

    def hear(self) -> list[CellSpec]:
        """Read the board; returns the cells that have begun since the last time."""
        news = self.ray.get(self.board.read.remote())
        for number, metrics in news.items():
            self.cluster.news[self.specs[number].run_dir] = metrics
        new = [number for number in news if number not in self.begun]
        self.begun.update(new)
        return [self.specs[number] for number in new]

    def collect(self, timeout: float = 0.5) -> list[tuple[CellSpec, dict[str, Any]]]:
        """Wait for tasks that have ended; returns the rows of the cells that are over."""
        done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=timeout)
        pairs = []
        for reference in done:
            request = self.running.pop(reference)
            spec = self.specs[request.number]
            row = self._judge(request, spec, self._outcome(reference))
            if row is not None:
                pairs.append((spec, row))
        return pairs

    def _outcome(self, reference: Any) -> Outcome:
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:  # the supervisor itself failed, and would again
            return Outcome(refusal=describe(error.cause)[:500])
        except errors.RayError as error:
            return Outcome(ending=f"was lost ({type(error).__name__})")

    def _judge(self, request: Request, spec: CellSpec, outcome: Outcome) -> dict[str, Any] | None:
        """The row of a cell that is over; else it is put among those that wait."""
        run_dir = Path(spec.run_dir)
        if outcome.files is not None:
            unpack(outcome.files, run_dir)
        if outcome.row is not None:
            return outcome.row
        if outcome.refusal:
            return failed_row(spec, f"a machine of the cluster could not run it: {outcome.refusal}")
        if not outcome.wants_files:
            self.lost[request.number] += 1
            if self.lost[request.number] >= ATTEMPTS:
                return lost_row(spec, f"its process {outcome.ending}", run_dir / "worker.log")
        sent = outcome.wants_files or request.files is not None or outcome.files is not None
        files = pack(run_dir) if sent else None
        self.waiting.append(replace(request, resumes=run_dir.exists(), files=files))
        return None

    def stop(self) -> None:
        """Let cells at work save, and bring home what those have reached that work in folders of their own."""
        self.ray.get(self.board.stop.remote())
        self.hear()
        for reference, request in self.running.items():
            if request.number not in self.begun:
                self.ray.cancel(reference)
        limit = time.monotonic() + PATIENCE + 5
        with contextlib.suppress(LibMoEError):
            while self.running and time.monotonic() < limit:
                self.collect()
                self.waiting.clear()


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
