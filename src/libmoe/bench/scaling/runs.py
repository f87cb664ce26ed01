"""Runs as data for fitting: sizes, losses, and which runs are repeats of one configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.methods import METHODS, create
from libmoe.stats.clusters import numbered

FLOPS_PER_PARAM = 6.0
"""Training FLOPs per parameter and token: two forward, four backward."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """Finished runs; arrays have one value per run.

    Attributes:
        params_R: active parameters, the ``N`` of the laws.
        total_R: all parameters.
        tokens_R: tokens trained on.
        loss_R: in ``unit``.
        experts_R: experts per layer, 1 for dense models; NaN where nobody said.
        flops_R: of the whole training.
        config_R: number of the configuration; runs that differ in their seed alone share it.
        left_out: runs that were not used because they failed.
    """

    params_R: Array
    total_R: Array
    tokens_R: Array
    loss_R: Array
    experts_R: Array
    flops_R: Array
    config_R: NDArray[np.int64]
    unit: str = "loss"
    left_out: int = 0

    @classmethod
    def of(
        cls,
        params: ArrayLike,
        tokens: ArrayLike,
        loss: ArrayLike,
        *,
        experts: ArrayLike = 1,
        total: ArrayLike | None = None,
        flops: ArrayLike | None = None,
        names: Sequence[Hashable] | None = None,
        unit: str = "loss",
        left_out: int = 0,
    ) -> Runs:
        """Check and align plain numbers.  Runs of equal names and sizes are repeats of one configuration.

        Args:
            total: all parameters; the same as ``params`` where not given.
            flops: of the whole training; 6 for each of ``params`` and token where not given.

        Raises:
            DataError: lengths differ, or a value is not finite and positive.
        """
        given = {"params": params, "tokens": tokens, "loss": loss, "experts": experts}
        given |= {k: v for k, v in (("total", total), ("flops", flops)) if v is not None}
        try:
            arrays = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64).ravel() for v in given.values()))
        except ValueError:
            sizes = ", ".join(f"{name} {np.size(value)}" for name, value in given.items())
            raise DataError(f"runs need one value each, or one for all; got {sizes}") from None
        for name, array in zip(given, arrays):
            fine = np.isfinite(array) & (array > 0) | (np.isnan(array) & (name == "experts"))
            if not fine.all():
                place = int(np.argmin(fine))
                raise DataError(f"run {place}: {name} must be a positive number, not {array[place]:g}")
        column = dict(zip(given, arrays))
        params_R, tokens_R, loss_R, experts_R = (column[k] for k in ("params", "tokens", "loss", "experts"))
        total_R = column.get("total", params_R)
        flops_R = column.get("flops", FLOPS_PER_PARAM * params_R * tokens_R)
        sizes_R = np.nan_to_num(np.stack([params_R, total_R, tokens_R, experts_R, flops_R])).T.tolist()
        configs = [(name, *size) for name, size in zip(names or [""] * len(sizes_R), sizes_R, strict=True)]
        config_R = numbered(configs, len(configs))
        return cls(params_R, total_R, tokens_R, loss_R, experts_R, flops_R, config_R, unit, left_out)

    def __len__(self) -> int:
        return len(self.loss_R)

    @property
    def configs(self) -> int:
        return len(np.unique(self.config_R))

    def take(self, places: NDArray[Any]) -> Runs:
        """The runs at ``places`` (places or a mask); numbers of configurations stay as they are."""
        names = ("params_R", "total_R", "tokens_R", "loss_R", "experts_R", "flops_R", "config_R")
        return replace(self, **{name: getattr(self, name)[places] for name in names})


def runs_from_rows(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str] = (), loss: str = "bits_per_byte"
) -> Runs:
    """Turn rows of ``results.json`` into runs; failed rows are left out and counted.

    A row may say ``num_experts`` besides its usual keys; dense rows need not.

    Args:
        methods: keys of the entries to use; all of them by default.  One law describes one family of models:
            methods that scale differently are better fitted apart.
        loss: which number of a row is the loss.

    Raises:
        DataError: no finished run, or a row without a number that is needed.
        ConfigError: ``methods`` names an entry that is not there.
    """
    keys = {str(row.get("method")) for row in rows}
    for name in methods:
        if name not in keys:
            raise unknown("method in the results", name, keys)
    chosen = [row for row in rows if not methods or row.get("method") in methods]
    done = [row for row in chosen if row.get("status", "ok") == "ok"]
    if not done:
        raise DataError(f"no finished run among {len(chosen)} rows; a law is fitted to finished runs")

    def column(name: str) -> list[float]:
        return [_number(row, name) for row in done]

    return Runs.of(
        column("active_params"),
        column("tokens"),
        column(loss),
        experts=[
            1.0 if row.get("kind") == "dense" else float(row.get("num_experts") or math.nan) for row in done
        ],
        total=column("total_params"),
        flops=column("train_flops"),
        names=[row.get("method") for row in done],
        unit=loss.replace("_", " "),
        left_out=len(chosen) - len(done),
    )


def read_runs(
    folders: Sequence[str | Path], methods: Sequence[str] = (), loss: str = "bits_per_byte"
) -> Runs:
    """The runs of grid folders; how many experts each has is read from its recipe, where that is there.

    Raises:
        DataError: a folder holds no readable results, or see :func:`runs_from_rows`.
        ConfigError: ``methods`` names an entry that no folder has.
    """
    rows = [
        row | {"num_experts": row.get("num_experts") or _experts(folder / f"{row['method']}-s{row['seed']}")}
        for folder in map(Path, folders)
        for row in _rows(folder)
    ]
    return runs_from_rows(rows, methods, loss)


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if any(not isinstance(row, dict) or not {"method", "seed"} <= row.keys() for row in rows):
            raise ValueError
    except OSError:
        raise DataError(
            f"no results.json in {str(folder)!r}; point at the folder of a finished grid"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise DataError(f"{path} is damaged; run the grid again, which keeps its finished cells") from None
    return rows


def _experts(folder: Path) -> int | None:
    """Experts of a run by its recipe, the method's default included; ``None`` where that cannot be told."""
    try:
        method = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["method"]
        options = method.get("options") or {}
        if "num_experts" in options or method["name"] not in METHODS:
            return int(options["num_experts"])
        return create(method["name"], options).num_experts
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, ConfigError):
        return None


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        where = f"run of {row.get('method')!r}, seed {row.get('seed')}"
        raise DataError(f"{where}: {name} must be a positive number, not {value!r}")
    return float(value)
