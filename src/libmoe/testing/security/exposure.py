"""How often a crafted batch spoils the answer of a victim, with and without each defence (arXiv 2402.05526)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.stats import Mean, clustered_mean
from libmoe.testing.probes import Side, default_side
from libmoe.testing.security.attacks import ATTACKS, Setting, rarity
from libmoe.testing.security.serving import Service, Serving, limited, serve

STRANGERS = "strangers"
"""The control: other requests as they come."""

EXPOSED = Serving(capacity_factor=1.0, group="batch")
"""What an attacker needs: an expert has an even share of places, and all requests of a batch share them."""


@dataclass(frozen=True)
class Exposure:
    """What one kind of company did to the victims, each number a mean over victims with its 95 % interval.

    Compared with the answer to the same request among strangers, without the randomness of a defence.

    Attributes:
        serving: name of the conditions.
        company: other ``strangers``, or the name of an attack.
        flipped: share of victims whose most probable next token is another one.
        harm: rise of ``-ln p`` of the token that was most probable, in nats.
        lost: experts per token that it used there and not here, over all layers.
    """

    serving: str
    company: str
    flipped: Mean
    harm: Mean
    lost: Mean


def defences(model: nn.Module, independent: bool) -> dict[str, Serving]:
    """The conditions to compare: what an attacker needs, and each defence against it.

    A model whose answers depend on the batch as it was built is attacked as it is; of any other it is asked what it
    would be to serve it with an even share of places.  Where routers limit no places, nothing is left to compare.
    """
    places = bool(limited(model))
    if independent and not places:
        return {}
    base = EXPOSED if places and independent else Serving()
    found = {"even share of places" if independent else "as built": base}
    found |= {
        "random order": replace(base, shuffle=True),
        "experts drawn": replace(base, sample=True),
        "places per request": replace(base, group="sequence"),
    }
    if places:
        found["twice as many places"] = replace(EXPOSED, capacity_factor=2.0)
        found["places for all"] = replace(EXPOSED, capacity_factor=None)
    return found


def expose(
    model: nn.Module,
    requests_RL: Tensor,
    setting: Setting,
    conditions: Mapping[str, Serving],
    *,
    victims: int = 8,
    repeats: int = 4,
    companies: Iterable[str] = (STRANGERS, *ATTACKS),
    seed: int = 0,
    side: Side = default_side,
) -> list[Exposure]:
    """Attack the first requests under each of the conditions.

    An attacker plays against the defence itself, as often as ``setting.queries`` allows; where the service is random,
    success is then the mean over fresh draws.

    Args:
        model: from ``input_ids`` to ``logits``; its parameters may be of any dtype.
        requests_RL: int64, requests of equal length; strangers are taken from them.
        victims: so many of them are attacked in turn.
        repeats: answers that a random service gives to the final batch.

    Raises:
        ConfigError: too few requests, or company that there is not.
    """
    companies = list(companies)
    for company in companies:
        if company not in (STRANGERS, *ATTACKS):
            raise unknown("company", company, (STRANGERS, *ATTACKS))
    if len(requests_RL) < max(victims, setting.rows):
        raise ConfigError(
            f"{len(requests_RL)} requests are too few; give {max(victims, setting.rows)} for {victims} victims in "
            f"batches of {setting.rows}"
        )
    rows = []
    for name, serving in conditions.items():
        trial = _Trial(model, requests_RL, setting, serving, repeats, seed, side)
        with serve(model, serving):
            found = {company: [trial.run(victim, company) for victim in range(victims)] for company in companies}
        for company, values in found.items():
            flipped, harm, lost = zip(*values, strict=True)
            rows.append(Exposure(name, company, share(flipped), clustered_mean(harm), clustered_mean(lost)))
    return rows


def share(values: Sequence[float]) -> Mean:
    """Mean of values between 0 and 1 with Wilson's interval, which is one where all are alike, too."""
    mean, count, z2 = clustered_mean(values), len(values), 1.959964**2
    middle = (mean.value + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (mean.value * (1 - mean.value) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return mean._replace(low=max(0.0, middle - half), high=min(1.0, middle + half))


@dataclass(frozen=True)
class _Trial:
    model: nn.Module
    requests_RL: Tensor
    setting: Setting
    serving: Serving
    repeats: int
    seed: int
    side: Side

    def run(self, victim: int, company: str) -> tuple[float, float, float]:
        """Flipped, harm and lost experts of one victim, means over repeats."""
        draws = torch.Generator().manual_seed(self.seed + victim)
        victim_L, place = self.requests_RL[victim], self.setting.place % self.setting.rows
        plain = Service(self.model, replace(self.serving, shuffle=False, sample=False), self.seed, self.side)
        usual = plain(self.setting.batch(victim_L, self.strangers(victim, draws)), place)
        token = int(usual.logits_V.argmax())
        service = Service(self.model, self.serving, self.seed + 7919 * (victim + 1), self.side)
        if company == STRANGERS:
            others_OL = self.strangers(victim, draws)
        else:
            others_OL = ATTACKS[company](service, victim_L, token, self.setting, draws)
        batch_BL = self.setting.batch(victim_L, others_OL)
        answers = [service(batch_BL, place) for _ in range(self.repeats if self.serving.random else 1)]
        return (
            sum(int(answer.logits_V.argmax()) != token for answer in answers) / len(answers),
            sum(rarity(answer, token) for answer in answers) / len(answers) - rarity(usual, token),
            sum(usual.experts - answer.experts for answer in answers) / len(answers) / len(victim_L),
        )

    def strangers(self, victim: int, draws: torch.Generator) -> Tensor:
        others_R = torch.randperm(len(self.requests_RL), generator=draws)
        return self.requests_RL[others_R[others_R != victim][: self.setting.rows - 1]]
