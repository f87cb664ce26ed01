"""Forms of scaling laws: what the loss of a model is as a function of its size, its data and its experts.

Every form is ``loss = factor x (sum of terms)``.  *Exponents* shape the factor and the terms; *coefficients* (never
negative) say how much of each term there is.  The split is what makes fitting easy: at given exponents the best
coefficients are a linear problem.

``N`` is the number of parameters, ``D`` of training tokens, ``E`` of experts (1 for a dense model).  Which parameters
``N`` counts (active ones, with or without embeddings) is decided by the runs a law is fitted to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.core.errors import ConfigError, unknown

Array = NDArray[np.float64]


class Exponent(NamedTuple):
    """A constant that shapes terms.

    Attributes:
        low, high: where a fit may go.
        starts: where fits begin.
        log: whether a fit moves its logarithm.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    log: bool = False


class Form(ABC):
    """A scaling law without its numbers.

    Attributes:
        name, source: for people.
        effects: for each of ``N``, ``D`` and ``E`` on which it depends, the constants that describe that effect;
            runs must have one more different value of it than there are.
        exponents: in the order that :meth:`terms` takes them.
        coefficients: names, in the order of the terms.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    effects: ClassVar[Mapping[str, tuple[str, ...]]]
    exponents: ClassVar[tuple[Exponent, ...]]
    coefficients: ClassVar[tuple[str, ...]]

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of all constants; their number is what a fit has to determine."""
        return (*(exponent.name for exponent in self.exponents), *self.coefficients)

    @abstractmethod
    def terms(self, exponents: Array, N_R: Array, D_R: Array, E_R: Array) -> tuple[Array, Array]:
        """Logarithms of the terms without coefficients, ``[..., R, terms]``, and of the factor, ``[..., R]``.

        Args:
            exponents: ``[exponents]``, or ``[exponents, ..., 1]`` for many laws at once.
        """


class PowerForm(Form):
    """``E + A/N^alpha + B/D^beta`` (Hoffmann et al., arXiv 2203.15556, Eq. 2).

    FLAME-MoE (arXiv 2505.20225) uses the same form for mixtures with one recipe, ``N`` being the active parameters.
    """

    name = "power"
    source = "arXiv 2203.15556, 2505.20225"
    effects = MappingProxyType({"N": ("alpha", "A"), "D": ("beta", "B")})
    exponents = (
        Exponent("alpha", 0.02, 2.5, (0.1, 0.25, 0.45, 0.7, 1.1)),
        Exponent("beta", 0.02, 2.5, (0.1, 0.25, 0.45, 0.7, 1.1)),
    )
    coefficients = ("A", "B", "E")

    def terms(self, exponents: Array, N_R: Array, D_R: Array, E_R: Array) -> tuple[Array, Array]:
        alpha, beta = exponents
        return _stacked(-alpha * np.log(N_R), -beta * np.log(D_R)), np.zeros_like(N_R)


class ExpertForm(Form):
    """``(A/N^alpha + B/Ê^beta + C/D^gamma + F) N^(d ln Ê)`` (Yun et al., arXiv 2404.02852).

    ``Ê`` is what ``E`` experts are worth: ``E_start`` for one, and never more than ``E_max``.  Logarithms are natural.
    """

    name = "experts"
    source = "arXiv 2404.02852"
    effects = MappingProxyType(
        {"N": ("alpha", "A"), "D": ("gamma", "C"), "E": ("beta", "B", "E_start", "E_max")}
    )
    exponents = (
        Exponent("alpha", 0.02, 2.5, (0.1, 0.3, 0.7)),
        Exponent("beta", 0.02, 2.5, (0.15, 0.5, 1.2)),
        Exponent("gamma", 0.02, 2.5, (0.1, 0.3, 0.7)),
        Exponent("d", -0.05, 0.05, (-0.002, 0.0, 0.002)),
        Exponent("E_start", 1.0, 8.0, (1.2, 2.5), log=True),
        Exponent("E_max", 16.0, 4096.0, (40.0, 400.0), log=True),
    )
    coefficients = ("A", "B", "C", "F")

    def terms(self, exponents: Array, N_R: Array, D_R: Array, E_R: Array) -> tuple[Array, Array]:
        alpha, beta, gamma, d, start, most = exponents
        worth_R = np.log(saturated(E_R, start, most))
        size_R = np.log(N_R)
        return _stacked(-alpha * size_R, -beta * worth_R, -gamma * np.log(D_R)), d * size_R * worth_R


def _stacked(*terms: Array) -> Array:
    """Terms along a new last axis, with the constant one behind them."""
    return np.stack([*terms, np.zeros_like(terms[0])], axis=-1)


def saturated(experts: ArrayLike, start: ArrayLike, most: ArrayLike) -> Array:
    """``Ê``: ``1/Ê = 1/(E - 1 + (1/start - 1/most)^-1) + 1/most`` (arXiv 2404.02852, after Clark et al. 2022)."""
    e, low, high = (np.asarray(value, dtype=np.float64) for value in (experts, start, most))
    return 1 / (1 / (e - 1 + 1 / (1 / low - 1 / high)) + 1 / high)


FORMS: Mapping[str, Form] = MappingProxyType({form.name: form for form in (PowerForm(), ExpertForm())})


def form_named(name: str) -> Form:
    """The form called ``name``.  Raises ConfigError naming the nearest one when there is none."""
    if name not in FORMS:
        raise unknown("scaling law", name, FORMS)
    return FORMS[name]


@dataclass(frozen=True)
class ScalingLaw:
    """A form with numbers.

    Raises:
        ConfigError: a constant is missing, unknown, not finite, or a coefficient is negative.
    """

    form: Form
    constants: Mapping[str, float]

    def __post_init__(self) -> None:
        check_constants(self.form, self.constants)
        for name in self.form.constants:
            value = self.constants.get(name)
            if value is None:
                raise ConfigError(f"scaling law {self.form.name!r}: constant {name!r} is missing")
            if not math.isfinite(value) or (name in self.form.coefficients and value < 0):
                raise ConfigError(f"scaling law {self.form.name!r}: constant {name} cannot be {value!r}")

    @cached_property
    def _numbers(self) -> tuple[Array, Array]:
        exponents = np.array([self.constants[e.name] for e in self.form.exponents])
        return exponents, np.array([self.constants[name] for name in self.form.coefficients])

    def predict(self, params: ArrayLike, tokens: ArrayLike, experts: ArrayLike = 1) -> Array:
        """Loss, in the unit of the runs, of models of ``params`` trained on ``tokens``; shapes broadcast."""
        sizes = np.broadcast_arrays(*(np.asarray(s, dtype=np.float64) for s in (params, tokens, experts)))
        exponents, coefficients = self._numbers
        terms, factor = self.form.terms(exponents, *sizes)
        return np.exp(factor) * (np.exp(terms) @ coefficients)


def check_constants(form: Form, names: Iterable[str]) -> None:
    """Raises ConfigError when one of ``names`` is no constant of ``form``."""
    for name in names:
        if name not in form.constants:
            raise unknown(f"constant of scaling law {form.name!r}", name, form.constants)


PUBLISHED: Mapping[str, ScalingLaw] = MappingProxyType({
    # Loss in nats per token of each paper's own tokeniser and text.
    "chinchilla": ScalingLaw(
        FORMS["power"], {"alpha": 0.34, "beta": 0.28, "A": 406.4, "B": 410.7, "E": 1.69}
    ),
    "flame-moe": ScalingLaw(
        FORMS["power"],
        {"alpha": 0.279702, "beta": 0.715500, "A": 148.413257, "B": 3269017.37, "E": 2.241716},
    ),
})  # fmt: skip
"""Constants that papers print; arXiv 2404.02852 prints none for its law with experts."""
