"""Trains in a process of its own, as told by the global JOB; run by the fixture ``start``."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import Any

JOB: dict[str, Any] = globals().get("JOB", {})


def main(job: dict[str, Any]) -> None:
    import torch

    from libmoe.core.errors import LibMoEError
    from libmoe.core.plugins import load_plugin
    from libmoe.train import train

    torch.set_num_threads(1)
    if "plugin" in job:
        load_plugin(job["plugin"])
    if job["world"] > 1:
        os.environ |= {"RANK": str(job["rank"]), "WORLD_SIZE": str(job["world"]), "LOCAL_RANK": str(job["rank"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
    with Path(f"{job['run_dir']}.stderr{job['rank']}").open("w", buffering=1) as messages:
        sys.stderr = messages
        faulthandler.dump_traceback_later(80, exit=True, file=messages)  # a process that hangs tells where
        try:
            train(job["recipe"], job["run_dir"])
        except LibMoEError as error:
            print(f"error: {error}", file=messages)
            sys.exit(1)


if JOB:
    main(JOB)
