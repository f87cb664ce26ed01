"""``libmoe profile``: how fast the experts are here, beside their peers and the roofline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from libmoe.cli.output import emit_json, notes, say, table
from libmoe.core.errors import ConfigError, unknown

DEVICES = ("cpu", "cuda")


def run(
    grid: str,
    shapes: Sequence[str] = (),
    steps: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    routings: Sequence[str] = (),
    only: Sequence[str] = (),
    out: Path | None = None,
    *,
    budget: float | None = None,
    routing_reuse: bool = False,
    device: str | None = None,
    end_to_end: bool = False,
    explain: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Exits with code 130 when interrupted; the cases that were finished by then are saved."""
    from libmoe.bench.kernels import GRIDS, EndToEnd, Profile, choose_cases, select

    device = _device(device)
    if budget is not None and budget <= 0:
        raise ConfigError(f"--budget is {budget:g}, but must be more than 0 seconds")
    cases = choose_cases(grid, device, shapes=shapes, steps=steps, dtypes=dtypes, routings=routings)
    candidates = select(list(only))
    if explain:
        _explain(cases, as_json)
        return
    folder = out or Path("runs") / time.strftime("profile-%Y%m%d-%H%M%S")
    if end_to_end:
        if only or shapes or routings or steps:
            raise ConfigError(
                "--end-to-end has a model of its own; it takes --dtype, --budget and --device only"
            )
        kinds = list(dict.fromkeys(case.dtype for case in cases))
        whole = EndToEnd(folder, kinds, device=device, budget=budget or 30.0, overwrite=overwrite)
        _train(whole, quiet, as_json)
        return
    profile = Profile(
        folder,
        cases,
        candidates,
        budget=budget or GRIDS[grid].budget,
        fresh=not routing_reuse,
        overwrite=overwrite,
    )
    _measure(profile, quiet, as_json)


def _measure(profile: Any, quiet: bool, as_json: bool) -> None:
    from libmoe.bench.kernels.table import case_table, noise, remarks, title, verdicts

    _introduce(profile.results)
    try:
        with _progress(quiet) as progress:
            bar = progress.add_task("", total=len(profile.cases))
            for case, found in zip(profile.cases, profile.run()):
                progress.update(bar, advance=1, description=escape(str(case)))
                if not as_json:
                    table(*case_table(found), title=f"\n{title(found)}")
                    for line in remarks(found):
                        say(f"  {line}")
    except KeyboardInterrupt:
        _interrupted(profile)
    if as_json:
        emit_json(profile.results)
    else:
        table(
            *verdicts(profile.results["cases"]),
            title="\nauto beside the best peer (ratio: its time over ours)",
        )
    differences = noise(profile.results["cases"])
    if differences:
        middle, worst = statistics.median(differences), max(differences)
        say(
            f"\nNoise: auto and the backend it picks, the same code, differ by {middle:.0%} (median; worst {worst:.0%})"
        )
    written = profile.publish()
    say(f"\nWritten: {', '.join(map(str, written))}")
    if not any(path.suffix == ".png" for path in written):
        say("The pictures need matplotlib: pip install 'libmoe[report]'")


def _introduce(results: dict[str, Any]) -> None:
    """The machine, and which implementations are not there."""
    machine, settings = results["machine"], results["settings"]
    routing = "a fresh routing in each call" if settings["routings"] > 1 else "one routing, used again"
    say(
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['packages']['torch']}; {routing}"
    )
    for each in results["implementations"]:
        if each["missing"]:
            say(f"  {each['name']}: {each['missing']}")


def _train(whole: Any, quiet: bool, as_json: bool) -> None:
    from libmoe.bench.kernels.table import memory, number

    _introduce_model(whole.results["settings"]["model"])
    try:
        with _progress(quiet) as progress:
            bar = progress.add_task("training", total=len(whole.dtypes))
            for rows in whole.run():
                progress.update(bar, advance=1)
                lines = [
                    [
                        row["implementation"],
                        row["dtype"],
                        f"{row['tokens_per_second']:,.0f}",
                        number(row["ms"]),
                        number(row["iqr_ms"]),
                        memory(row["peak_bytes"]),
                        f"{row['first_loss']:.5f}",
                        f"{row['speedup']:.2f}" if row["speedup"] else "",
                    ]
                    for row in rows
                    if row["status"] == "ok"
                ]
                columns = ["experts", "dtype", "tokens/s", "ms/step", "IQR", "peak", "first loss", "vs peer"]
                if not as_json:
                    table(columns, lines)
                for row in rows:
                    if row["status"] != "ok":
                        say(f"  {row['implementation']} {row['dtype']} {row['status']}: {row['reason']}")
    except KeyboardInterrupt:
        _interrupted(whole)
    if as_json:
        emit_json(whole.results)
    say(f"\nWritten: {whole.folder / 'end_to_end.json'}")


def _introduce_model(m: dict[str, int]) -> None:
    layers = f"{m['layers']} layers of width {m['hidden_size']}"
    experts = f"{m['num_experts']} experts of width {m['expert_hidden']}, top {m['top_k']}"
    say(f"OLMoE of transformers, {layers}, {experts}; {m['batch_size']} x {m['seq_len']} tokens a step")


def _explain(cases: Sequence[Any], as_json: bool) -> None:
    """Which backend ``auto`` picks for each case, and how the others stand."""
    from libmoe.bench.kernels.measure import explained
    from libmoe.bench.kernels.table import number

    tasks = dict.fromkeys((case.shape, case.step, case.dtype) for case in cases)
    first = {(case.shape, case.step, case.dtype): case for case in reversed(cases)}
    found = [{"shape": str(shape), "pass": step, "dtype": dtype} for shape, step, dtype in tasks]
    for entry, task in zip(found, tasks):
        entry |= explained(first[task])
    if as_json:
        emit_json(found)
        return
    for entry in found:
        rows = []
        for choice in entry["choices"]:
            estimate = "cannot" if choice["seconds"] is None else number(1e3 * choice["seconds"])
            rows.append([choice["name"], estimate, choice["reason"]])
        heading = f"\nT,D,H,N,K = {entry['shape']} · {entry['pass']} · {entry['dtype']}"
        table(["backend", "estimated ms", "why"], rows, title=heading)


def _progress(quiet: bool) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=notes, transient=True, disable=quiet or not notes.is_terminal)


def _interrupted(measured: Any) -> None:
    """Say where the finished part is, and leave as Ctrl-C does."""
    done = measured.results.get("cases") or measured.results.get("rows")
    kept = f"what was measured by then is in {measured.folder}" if done else "nothing was measured yet"
    say(f"interrupted; {kept}")
    raise SystemExit(130)


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not there: this torch sees no CUDA device; choose 'cpu'")
    return name
