"""The training loop, from top to bottom.

``train`` is exact about interruption: kill it at any step, run it again, and ``metrics.jsonl`` and the final
weights are, byte for byte on one CPU process, those of a run that was never disturbed.  That follows from few
decisions: data, learning rate and randomness are functions of the step; the logs are cut back to the length
that the checkpoint remembers; wall-clock numbers go to a file of their own.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libmoe.core.config import to_dict
from libmoe.core.errors import TrainingError
from libmoe.core.plugins import loaded_plugins
from libmoe.layers import moe_layers
from libmoe.train import checkpoint, parallel, provenance
from libmoe.train.files import disk_errors
from libmoe.train.folder import RunFolder, TrainResult
from libmoe.train.logs import LOST, Logs
from libmoe.train.metrics import auxiliary_losses, balance, short
from libmoe.train.optim import set_learning_rate
from libmoe.train.progress import Progress
from libmoe.train.recipe import Recipe, TrainConfig, sees_the_future, validate
from libmoe.train.schedule import learning_rate
from libmoe.train.session import Session
from libmoe.train.step import Batch, accumulate, count
from libmoe.train.stopping import Interrupted, StopOnSignal

Evaluate = Callable[[nn.Module, int], dict[str, Any]]


def train(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    resume: str = "auto",
    overwrite: bool = False,
    evaluate: Evaluate | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> TrainResult:
    """Train as ``recipe`` says and leave everything in ``run_dir``.

    The folder gets ``recipe.yaml``, ``env.json``, ``provenance.json``, ``metrics.jsonl``, ``timing.jsonl``,
    ``checkpoints/``, ``model/`` (the final model) and, last, ``result.json``.  Run again, an interrupted run goes
    on where its newest checkpoint is and a finished one only returns its result.  Under ``torchrun`` every process
    calls this.

    Args:
        resume: ``auto``; ``never``, which refuses a folder with checkpoints; or a checkpoint
            (``step-00000100``) to go on from: newer ones are then deleted.
        overwrite: delete what an earlier run left in the folder and start anew.
        evaluate: called as ``evaluate(model, step)`` every ``eval_every`` steps and at the end, on every process,
            in evaluation mode and without gradients.  What it returns is logged under ``eval``; the checkpoint
            with the lowest ``bits_per_byte`` (without it, ``loss``) is kept.
        quiet: no progress and no messages.
        command: what the user typed, for ``provenance.json``; ``None``: the command line of this process.

    Raises:
        ConfigError: the recipe is impossible, or the folder holds a run of another recipe.
        CheckpointError: the checkpoint is damaged or missing.
        TrainingError: the loss is not finite, the disk is full, or the folder is in use.
        Interrupted: SIGINT or SIGTERM, after the step was finished and saved (exit code 130 or 143).
    """
    with parallel.join(recipe.train) as world:
        notes = validate(recipe, world.size)
        quiet = quiet or not world.is_main
        with RunFolder(Path(run_dir), recipe, world, overwrite) as run:
            finished = run.result() if resume == "auto" else None
            if finished is not None:
                with Progress(recipe.name, finished.steps, finished.steps, quiet) as progress:
                    progress.say(f"{run.path} is finished; --overwrite trains it anew")
                return finished
            start = checkpoint.find(run.checkpoints, resume)
            session = Session(recipe, world, start, quiet)
            if not _causal(session) and sees_the_future(recipe) not in notes:
                notes.append(sees_the_future(recipe))
            world.barrier()  # every process has read before the main one deletes
            warnings = list(notes)
            if world.is_main:
                warnings += run.begin()
                _note_origin(session, run, command)
                checkpoint.drop_after(run.checkpoints, session.state.step)
            with Progress(recipe.name, session.state.step, recipe.train.steps, quiet) as progress:
                for warning in warnings:
                    progress.say(f"warning: {warning}")
                if start is not None:
                    progress.say(f"resuming {run.path} from {start.name}")
                _loop(session, run, evaluate, progress)
            return _finish(session, run, notes)


def _note_origin(session: Session, run: RunFolder, command: str | None) -> None:
    recipe = session.recipe
    facts = provenance.gather(
        command=provenance.command_line() if command is None else command,
        recipe=to_dict(recipe),
        plugins=loaded_plugins(),
        data={recipe.data.source: session.data.fingerprint},
    )
    provenance.record(run.path, facts)


def _loop(session: Session, run: RunFolder, evaluate: Evaluate | None, progress: Progress) -> None:
    recipe, world, model, optimizer = session.recipe, session.world, session.model, session.optimizer
    cfg, state, info, statistics = recipe.train, session.state, session.info, session.statistics
    with Logs(run.path, recipe, state, world, session.memory) as logs, StopOnSignal() as stopping:
        while state.step < cfg.steps:
            begun = time.perf_counter()
            info.loads, info.metrics = {}, {}  # a resumed run has none from before
            for controller in session.controllers:
                controller.before_step(info)
            lr = scheduled(cfg, state.step)
            set_learning_rate(optimizer, lr)

            # The gradient of the mean loss over the whole batch, all processes and micro-batches together.
            batches = session.batches(state.step)
            totals = count(batches, bool(stopping.signal), world)
            module = session.replica.module()
            last = state.step + 1 == cfg.steps
            evaluating = evaluate is not None and (last or due(state.step + 1, cfg.eval_every))
            logging = last or evaluating or due(state.step + 1, cfg.log_every)
            with session.confidence.watching(logging):
                state.loss = accumulate(
                    module, batches, totals, statistics, recipe, world, state.step, session.counting
                )
            for controller in session.controllers:
                controller.after_backward(info)
            norm = float(parallel.clip_gradients(model, cfg.clip))
            if not (math.isfinite(state.loss) and math.isfinite(norm)):
                raise _failure(session, run, logs, batches, norm)
            optimizer.step()
            optimizer.zero_grad()

            state.step += 1
            state.tokens += totals.tokens
            stop = totals.stop > 0
            info.step = state.step
            if session.controllers or logging:
                info.loads = statistics.reduced()
            for controller in session.controllers:
                controller.after_step(info)
            state.seconds += time.perf_counter() - begun

            # From here on nothing changes the model; what follows looks at it, reports and saves.
            measured = _evaluate(evaluate, model, state.step) if evaluate is not None and evaluating else {}
            if logging:
                record = _record(session, lr, norm, measured)
                speed = logs.write(record, state.seconds)
                progress.update(state.step, record, speed)
                for alarm in record.get("alarms", []):
                    progress.say(f"warning: step {state.step}: {alarm['message']}")
            statistics.reset()
            if last or stop or due(state.step, cfg.save_every):
                state.note_evaluation(measured)
                state.metrics_bytes, state.timing_bytes = logs.sync()
                session.save(run.checkpoints)
                if world.is_main:
                    checkpoint.prune(
                        run.checkpoints, cfg.keep_checkpoints, state.best_step, cfg.keep_optimizers
                    )
            if stop and not last:
                progress.say(
                    f"stopped after step {state.step} and saved; run the same command again to resume"
                )
                raise Interrupted(stopping.signal or signal.SIGTERM)
        for controller in session.controllers:
            controller.finish(info)


def _record(session: Session, lr: float, norm: float, measured: dict[str, Any]) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` for the step just finished: only what the recipe decides, no wall clock."""
    state, info = session.state, session.info
    sure = session.confidence.by_layer()
    record = {
        "step": state.step,
        "tokens": state.tokens,
        "loss": short(state.loss),
        "lr": short(lr),
        "grad_norm": short(norm),
        "balance": {layer: row | sure.get(layer, {}) for layer, row in balance(info.loads).items()},
        "losses": auxiliary_losses(session.statistics),
        "controllers": {name: short(value) for name, value in info.metrics.items()},
    }
    if alarms := session.alarms.check(record):
        record["alarms"] = alarms
    if measured:
        record["eval"] = measured
    return record


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def scheduled(cfg: TrainConfig, step: int) -> float:
    """Learning rate of step ``step``, counted from 0."""
    return learning_rate(
        step,
        steps=cfg.steps,
        lr=cfg.lr,
        schedule=cfg.schedule,
        warmup_steps=cfg.warmup_steps,
        min_lr_ratio=cfg.min_lr_ratio,
        decay_fraction=cfg.decay_fraction,
    )


def _evaluate(evaluate: Evaluate, model: nn.Module, step: int) -> dict[str, Any]:
    model.eval()
    with torch.no_grad():
        measured = evaluate(model, step)
    model.train()
    return measured


def _failure(
    session: Session, run: RunFolder, logs: Logs, batches: list[Batch], norm: float
) -> TrainingError:
    """The error for a loss or gradient that is not finite; the optimiser has not stepped on it."""
    state, step = session.state, session.state.step + 1
    folder = run.path / f"failed-{checkpoint.name_of(step)}"
    facts = {"step": step, "tokens": state.tokens, "loss": str(state.loss), "grad_norm": str(norm)}
    session.save_failure(folder, batches, facts)
    what = f"loss {state.loss:.4g}, gradient norm {norm:.4g}"
    alarm = {"kind": "not_finite", "layer": None, "message": what}
    logs.write({"step": step, "tokens": state.tokens, "alarms": [alarm]}, state.seconds)
    saved = checkpoint.list_steps(run.checkpoints)
    last = checkpoint.name_of(saved[-1]) if saved else "none"
    return TrainingError(
        f"step {step} is not finite ({what}); last good checkpoint: {last}; model and batch are kept in {folder}; "
        "lower train.lr or train.clip, or lengthen train.warmup_steps"
    )


def _causal(session: Session) -> bool:
    """As built: options may let a router see later tokens where its method does not by itself."""
    return all(layer.router.causal for _, layer in moe_layers(session.model))


def _finish(session: Session, run: RunFolder, notes: list[str]) -> TrainResult:
    state = session.state
    result = TrainResult(
        run_dir=run.path,
        steps=state.step,
        tokens=state.tokens,
        final_loss=state.loss,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        peak_memory_bytes=session.memory.bytes(),
        train_seconds=state.seconds,
        notes=notes,
        causal=_causal(session),
    )
    with disk_errors(run.model, f"the last checkpoint is intact: {LOST}"):
        session.save_model(run.model)
        if session.world.is_main:
            provenance.add_packages(run.path)
            run.write_result(result)
    session.replica.release()
    return result
