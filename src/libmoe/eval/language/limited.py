"""Programs that others wrote, in a process of their own with limits of time, memory and output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from libmoe.core.errors import ConfigError

OUTPUT = 4000
"""Characters of output that are kept, from the end."""

_LAUNCH = """
import os, resource, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds),
                     (resource.RLIMIT_FSIZE, 1 << 26), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Finished(NamedTuple):
    """How a program ended; ``code`` is negative when a signal ended it, and ``None`` when time ran out."""

    code: int | None
    output: str


def run_limited(
    command: Sequence[str], folder: Path, *, seconds: float, memory: int, environment: Mapping[str, str]
) -> Finished:
    """Run ``command`` in ``folder`` and kill it, with all that it started, when ``seconds`` have passed.

    This keeps endless loops and greedy programs from doing harm by accident.  It is no sandbox: the program may read
    and write whatever the user may, so run the whole evaluation in a container if the programs are not trusted.

    Args:
        memory: bytes of address space.
        environment: all that the program sees of the environment.

    Raises:
        ConfigError: the system cannot limit processes, or there is no such command.
    """
    if sys.platform == "win32":
        raise ConfigError("running programs with limits needs a POSIX system; use WSL or a container")
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        raise ConfigError(f"no program {command[0]!r}; give its path")
    # Time on all cores together, for what might get away from being killed by the clock.
    processor = int(seconds * (os.cpu_count() or 1)) + 1
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(memory), str(processor), *command]
    # Output goes to a file: a pipe that nobody empties would stop the program, one that is emptied could fill memory.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            launch,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - 4 * OUTPUT))
        text = output.read().decode(errors="replace")[-OUTPUT:]
    return Finished(code, text)


def _kill(process: subprocess.Popen) -> None:
    """End the program and what it left behind: all have the session that was started for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
