"""What a version has to show before it may go into production."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libmoe.core.config import build
from libmoe.core.errors import ConfigError, unknown
from libmoe.mlops.comparison import Regression
from libmoe.train.recipe import read_yaml

FILE = "gate.yaml"
_OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_REQUIREMENT = re.compile(r"\s*([\w.,/+-]+?)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A bound on a metric, such as ``bits_per_byte <= 2.9``."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Raises ConfigError when ``text`` is no bound."""
        found = _REQUIREMENT.fullmatch(text)
        try:
            if found is not None:
                return cls(found[1], found[2], float(found[3]))
        except ValueError:
            pass
        raise ConfigError(
            f"require: {text!r} is no bound; write METRIC <= NUMBER (or >=, <, >), e.g. 'bits_per_byte <= 2.9'"
        )

    def check(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The finding.  Raises ConfigError where the metric was not measured."""
        if self.metric not in metrics:
            if not metrics:
                raise ConfigError(
                    f"{self.metric} was not measured: the version has no evaluation; evaluate it first"
                )
            raise unknown("metric", self.metric, metrics)
        value = metrics[self.metric]
        passed = bool(_OPERATORS[self.sign](value, self.bound))
        return {"what": f"{self.metric} {self.sign} {self.bound:g}", "found": value, "passed": passed}


@dataclass
class Gate:
    """Keys of ``gate.yaml``.

    Attributes:
        require: bounds on metrics, all of which must hold.
        not_worse: nor may the version be significantly worse than the one in production, on the same held-out text
            (and the same tasks, where both were evaluated on some); so few documents that nothing could be
            seen do not pass.
        lineage: recipe, provenance and evaluation must be known.
    """

    require: list[str] = field(default_factory=list)
    not_worse: bool = False
    lineage: bool = True

    @classmethod
    def of(cls, folder: Path, require: list[str], not_worse: bool) -> Gate:
        """The gate of ``folder``, made stricter by what is asked for besides.

        Raises:
            ConfigError: the file is no gate, or a gate without any bound: it would let everything pass.
        """
        file = folder / FILE
        gate = cls()
        if file.is_file():
            values = read_yaml("gate", file, "recipes", ())
            gate = build(cls, {key: value for key, value in values.items() if key != "name"})
        gate = cls([*gate.require, *require], gate.not_worse or not_worse, gate.lineage)
        if not gate.require:
            raise ConfigError(
                f"nothing is required of a version in production; give --require 'bits_per_byte <= 2.9', or write "
                f"{file} with a list under 'require'"
            )
        return gate

    def check(
        self, metrics: Mapping[str, float], missing: list[str], regression: Regression | None
    ) -> list[dict[str, Any]]:
        """One finding for each thing that is required: ``what``, ``found``, ``passed``.

        Args:
            missing: files of the lineage that are not there.
            regression: the comparison with the version in production, if there is one.
        """
        found = [Requirement.parse(text).check(metrics) for text in self.require]
        if self.lineage:
            found.append({"what": "lineage", "found": missing or "complete", "passed": not missing})
        if self.not_worse and regression is not None:
            passed = regression.telling and not regression.worse
            found.append({"what": "not worse than production", "found": regression.words, "passed": passed})
        return found
