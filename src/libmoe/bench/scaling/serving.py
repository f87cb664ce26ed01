"""What a model costs to serve, before it exists (Yun et al., arXiv 2404.02852, Sec. 4).

The paper measures latencies; here they come from a roofline: bytes that have to move, operations that have to be done,
and results that have to be exchanged.  Costs are device-seconds per generated token; prices per second carry over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from libmoe.bench.scaling.runs import Runs
from libmoe.core.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """Models that differ in size and in the number of experts alone.

    Attributes:
        expert_share: share of the dense model's parameters of which there is one copy per expert.  A third is two
            thirds of the parameters, the FFNs, in every second layer.
        top_k: experts that a token uses.
        counts: which parameters the law's ``N`` counts: those a token uses (``active``), or those of the model with
            one expert (``dense``, as in the paper, which leaves out the FLOPs of the second expert).
        aspect: width over depth, which sets the size of the KV cache.
        flops_per_param: training FLOPs for each of the ``N`` parameters and token.
    """

    expert_share: float = 1 / 3
    top_k: int = 2
    counts: Literal["active", "dense"] = "active"
    aspect: float = 128.0
    flops_per_param: float = 6.0

    def __post_init__(self) -> None:
        if not 0 <= self.expert_share < 1 or self.top_k < 1 or self.aspect <= 0 or self.flops_per_param <= 0:
            raise ConfigError(
                f"family: expert_share must be in 0..1 and the other numbers positive, got {self}"
            )
        if self.counts not in ("active", "dense"):
            raise ConfigError(f"family: counts must be 'active' or 'dense', got {self.counts!r}")

    @classmethod
    def measured(cls, runs: Runs, top_k: int = 2) -> Family:
        """The family of runs that differ in size: their FLOPs, and what one more expert adds to the parameters.

        Of ``T`` parameters ``A`` are active, so an expert has ``(T - A)/(E - k)``.  Without runs of more than
        ``top_k`` experts the share of the experts stays as it is by default.

        Raises:
            ConfigError: the runs cannot have been made with this ``top_k``.
        """
        flops = float(np.median(runs.flops_R / (runs.params_R * runs.tokens_R)))
        sparse = (runs.experts_R > top_k) & (runs.total_R > runs.params_R)
        if not sparse.any():
            return cls(top_k=top_k, flops_per_param=flops)
        chosen = runs.take(sparse)
        expert_R = (chosen.total_R - chosen.params_R) / (chosen.experts_R - top_k)
        share = float(np.median(expert_R / (chosen.params_R - (top_k - 1) * expert_R)))
        if not 0 < share < 1:
            raise ConfigError(
                f"top_k={top_k} does not fit the runs: experts would be {share:.2f} of a dense model"
            )
        return cls(expert_share=share, top_k=top_k, flops_per_param=flops)

    def _used(self, experts: float) -> float:
        return 1 + self.expert_share * (min(self.top_k, experts) - 1)

    def dense_params(self, params: float, experts: float) -> float:
        """Parameters of the model with one expert whose ``N`` is ``params`` with ``experts``."""
        return params / self._used(experts) if self.counts == "active" else params

    def active_params(self, params: float, experts: float) -> float:
        return self.dense_params(params, experts) * self._used(experts)

    def total_params(self, params: float, experts: float) -> float:
        """``N (1 + (E - 1)/3)`` with the paper's share."""
        return self.dense_params(params, experts) * (1 + self.expert_share * (experts - 1))

    def touched_params(self, params: float, experts: float, tokens: float) -> float:
        """Parameters that ``tokens`` tokens use between them: of ``E`` experts, ``E (1 - (1 - k/E)^tokens)``."""
        idle = (1 - min(self.top_k, experts) / experts) ** tokens
        return self.dense_params(params, experts) * (1 + self.expert_share * (experts * (1 - idle) - 1))

    def shape(self, params: float, experts: float) -> tuple[float, float]:
        """Width and depth of the model: 12 width^2 parameters in each layer of the dense one."""
        width = (self.aspect * self.dense_params(params, experts) / 12) ** (1 / 3)
        return width, width / self.aspect


class Serving(Protocol):
    """Device-seconds to generate a token; infinite when a model cannot be served."""

    def cost(self, family: Family, params: float, experts: float) -> float: ...


@dataclass(frozen=True)
class FlopServing:
    """Serving that is bound by computation: two FLOPs for each active parameter, whatever the model's total size."""

    flops_per_second: float = 312e12 * 0.4

    def cost(self, family: Family, params: float, experts: float) -> float:
        return 2 * family.active_params(params, experts) / self.flops_per_second


@dataclass(frozen=True)
class Accelerator:
    """Peak figures of one device; the default is an A100 with 40 GB, on which the paper measures.

    Attributes:
        flops, bandwidth, link: per second: operations, bytes from memory, bytes to the other devices.
        memory: bytes.
        hop: seconds to begin an exchange between devices.
    """

    flops: float = 312e12
    bandwidth: float = 1.555e12
    memory: float = 40e9
    link: float = 300e9
    hop: float = 10e-6


@dataclass(frozen=True)
class RooflineServing:
    """Continuous batching on the cheapest number of devices, with as large a batch as memory allows.

    Attributes:
        devices: numbers of devices that may hold one copy of the model.
        prompt, output: mean tokens of a request, read and generated.
        bytes_per_value: of weights and KV cache.
    """

    accelerator: Accelerator = Accelerator()
    devices: tuple[int, ...] = (1, 2, 4, 8)
    prompt: float = 160.0
    output: float = 340.0
    bytes_per_value: float = 2.0

    def cost(self, family: Family, params: float, experts: float) -> float:
        return min(self._cost_on(devices, family, params, experts) for devices in self.devices)

    def cheapest_devices(self, family: Family, params: float, experts: float) -> int:
        return min(self.devices, key=lambda devices: self._cost_on(devices, family, params, experts))

    def batch(self, devices: int, family: Family, params: float, experts: float) -> float:
        """Requests that fit: ``(G M - weights) / ((2p + n) h l)``, a request holding half its output on average.

        A token's keys and values are ``2 h l`` numbers, so ``p + n/2`` tokens hold ``(2p + n) h l``.
        """
        width, depth = family.shape(params, experts)
        request = (2 * self.prompt + self.output) * width * depth * self.bytes_per_value
        free = devices * self.accelerator.memory - family.total_params(params, experts) * self.bytes_per_value
        return free / request

    def _cost_on(self, devices: int, family: Family, params: float, experts: float) -> float:
        """``G / throughput``: an iteration generates a token for each request and starts ``b/n`` new ones."""
        batch = self.batch(devices, family, params, experts)
        if batch < 1:
            return math.inf
        started = batch / self.output
        decode = self._latency(devices, family, params, experts, batch, context=batch)
        prompt = self._latency(devices, family, params, experts, max(started, 1.0) * self.prompt, context=0.0)
        return devices * (decode + min(started, 1.0) * prompt) / batch

    def _latency(
        self, devices: int, family: Family, params: float, experts: float, tokens: float, context: float
    ) -> float:
        """Seconds of one pass of ``tokens`` tokens, of which ``context`` requests read their KV cache."""
        device = self.accelerator
        width, depth = family.shape(params, experts)
        cache = context * (2 * self.prompt + self.output) * width * depth
        moved = (family.touched_params(params, experts, tokens) + cache) * self.bytes_per_value
        done = 2 * family.active_params(params, experts) * tokens
        seconds = max(moved / device.bandwidth, done / device.flops) / devices
        if devices > 1:  # two sums over the devices in each layer, each sending nearly everything twice
            sent = 2 * (devices - 1) / devices * tokens * width * self.bytes_per_value
            seconds += 2 * depth * (device.hop + sent / device.link)
        return seconds
