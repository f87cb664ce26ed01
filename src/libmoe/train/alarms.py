"""Alarms: what usually goes wrong in MoE training, noticed while there is time to act.

They look at logged steps only, and their state is saved with the checkpoint, so a resumed run raises the same
alarms at the same steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from libmoe.core.balance import dead as dead_experts

PATIENCE = 5
"""Logged steps in a row that a bad load must last: one small batch may well miss an expert."""
COLLAPSE = 0.5
"""Entropy of the load below this fraction of its maximum ln N is called a collapse."""
SPIKE_WINDOW = 20
SPIKE_DEVIATIONS = 8.0
SPIKE_FACTOR = 1.2


class Alarms:
    """Watches the records of ``metrics.jsonl``.

    * ``dead_experts``: an expert of a layer got less than a hundredth of its fair share, too long;
    * ``collapse``: the load of a layer concentrates on few experts, too long;
    * ``loss_spike``: the loss is far above what it was over the last logged steps.
    """

    def __init__(self) -> None:
        self._streaks: dict[str, int] = {}
        self._losses: list[float] = []

    def check(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Alarms that begin with this record: ``kind``, ``layer`` (or ``None``), ``message`` with a fix."""
        found = []
        for layer, balance in record.get("balance", {}).items():
            load = balance["load"]
            if len(load) < 2:
                continue
            dead = dead_experts(load)
            fresh = [e for e in range(len(load)) if self._lasts(f"dead/{layer}/{e}", e in dead)]
            if fresh:
                found.append(
                    {
                        "kind": "dead_experts",
                        "layer": int(layer),
                        "message": f"layer {layer}: expert(s) {', '.join(map(str, fresh))} get almost no tokens; "
                        "raise method.options.balance or lower train.router_lr_scale",
                    }
                )
            if self._lasts(f"collapse/{layer}", balance["entropy"] < COLLAPSE * math.log(len(load))):
                found.append(
                    {
                        "kind": "collapse",
                        "layer": int(layer),
                        "message": f"layer {layer}: the load sits on about {math.exp(balance['entropy']):.1f} of "
                        f"{len(load)} experts; raise method.options.balance or method.options.z_loss",
                    }
                )
        found += self._spike(record["loss"])
        return found

    def _lasts(self, key: str, bad: bool) -> bool:
        """Whether the condition has just now lasted for PATIENCE records."""
        if not bad:
            self._streaks.pop(key, None)
            return False
        self._streaks[key] = self._streaks.get(key, 0) + 1
        return self._streaks[key] == PATIENCE

    def _spike(self, loss: float) -> list[dict[str, Any]]:
        before, self._losses = self._losses, [*self._losses, loss][-SPIKE_WINDOW:]
        if len(before) < SPIKE_WINDOW:
            return []
        usual = statistics.median(before)
        deviation = statistics.median(abs(x - usual) for x in before)
        # Above all of them, too: where batches are of different kinds, every now and then one costs more.
        if loss <= max(usual + SPIKE_DEVIATIONS * deviation, SPIKE_FACTOR * usual, *before):
            return []
        return [
            {
                "kind": "loss_spike",
                "layer": None,
                "message": f"the loss jumped from {usual:.3f} to {loss:.3f}; lower train.lr, lengthen "
                "train.warmup_steps or lower train.clip",
            }
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"streaks": dict(self._streaks), "losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._streaks, self._losses = dict(state["streaks"]), list(state["losses"])
