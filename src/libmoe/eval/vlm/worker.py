"""The evaluated side, run in lmms-eval's environment: ``python -m libmoe.eval.vlm.worker job.json``.

Says on standard output what happens, one JSON object a line; what libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.files import to_json
from libmoe.eval.harness.documents import reason
from libmoe.eval.harness.settings import Settings

Say = Callable[..., None]


def main(path: str) -> None:
    say = _speaker()
    _end_with_parent()
    try:
        work(json.loads(Path(path).read_text(encoding="utf-8")), say)
    except LibMoEError as error:
        say("error", kind=type(error).__name__, why=str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        say("error", kind="LibMoEError", why=f"vision-language evaluation failed: {reason(error)}")


def work(job: dict[str, Any], say: Say) -> None:
    """Evaluate the model of ``job`` on its tasks, and say for each what came out or why nothing did."""
    from libmoe.eval.mirror import serving
    from libmoe.eval.vlm.adapters import Adapter
    from libmoe.eval.vlm.driver import run_task
    from libmoe.eval.vlm.groups import score_groups
    from libmoe.eval.vlm.loading import Loader

    settings = Settings(**job["settings"])
    out = Path(job["out"])
    for name in ("shots", "system"):
        if getattr(settings, name):
            say("note", text=f"{name} does not apply to vision-language tasks, asked as lmms-eval asks them")
    with serving(job["data_dir"]) if job["data_dir"] else nullcontext():
        adapter = Adapter.open(job["model"], job["dtype"], settings.batch_size)
        names = [wanted["task"] for wanted in job["tasks"]]
        loader = Loader(names, adapter.model_name, adapter.prefers, job["include"], out / "samples")
        for name in names:
            if name not in loader.names:
                raise loader.unknown(name)
        say("ready")
        for wanted in job["tasks"]:
            loaded = loader.load(wanted["task"])
            for name, why in loaded.failed.items():
                say("failed", task=name, why=why)
            scores = {}
            for name, task in loaded.tasks.items():
                try:
                    scores[name] = run_task(
                        adapter, name, task, out, settings,
                        model=job["identity"], cluster=wanted["cluster"], judge=job["judge"],
                        progress=lambda task, done, total: say("progress", task=task, done=done, total=total),
                    )  # fmt: skip
                except ConfigError:
                    raise
                except LibMoEError as error:
                    say("failed", task=name, why=str(error))
                except Exception as error:  # code of others: whatever it is, the rest goes on
                    say("failed", task=name, why=reason(error))
                else:
                    say("score", score=asdict(scores[name]))
            try:
                for group, found in score_groups(loaded, scores).items():
                    say("group", group=group, scores=found)
            except Exception as error:
                say("failed", task=wanted["task"], why=f"its group cannot be scored: {reason(error)}")
            say("finished", task=wanted["task"])
        for text in adapter.notes:
            say("note", text=text)


def _speaker() -> Say:
    """Keep standard output to ourselves: all that is printed goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    sys.stdout.flush()
    os.dup2(2, 1)

    def say(event: str, **facts: Any) -> None:
        out.write(to_json({"event": event, **facts}) + "\n")
        out.flush()

    return say


def _end_with_parent() -> None:
    """End when the other end of standard input is closed; Ctrl-C is the parent's to handle.

    Ending at any moment is safe: files appear whole or grow by whole lines.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold at the end
            pass
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
