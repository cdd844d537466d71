"""Outcomes of attacks: what an attacker gained, how sure that is, and what the policy allows.

The advantage of an attacker who has to tell two worlds apart is its true positive rate less its false positive rate; 0 is
blind guessing, 1 is certainty. The advantage of an attacker who has to find one of n people is its rate of right guesses
less 1/n.

Sources of what a loss of epsilon allows, E = exp(epsilon):
- two worlds: at most (E-1+2 delta)/(E+1) (Kairouz, Oh, Viswanath 2015, theorem 1);
- one of n: an output that is likeliest under one of them is at least 1/E times as likely under each other one, so at most
  E/(E+n-1) of all guesses are right (Alvim et al. 2011, "On the relation between differential privacy and quantitative
  information flow");
- one of n whose losses differ by pair: see `among_by_loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import beta

FALSE_ALARM = 1e-6
"""How often at most a finding of a right product is wrong on either side, and how often a wrong one's limit is."""
SHOWN = 0.05
"""The interval in the table holds the advantage at least 19 times in 20."""
SUCCESS = 0.5
"""An attack that gains less without protection proves nothing."""


def rate_interval(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """The Clopper-Pearson interval of a rate; wrong at most `alpha` of the time, half of it on either side."""
    low = beta.ppf(alpha / 2, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(1 - alpha / 2, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


class Measured(Protocol):
    """How well an attack did."""

    @property
    def advantage(self) -> float:
        """Above blind guessing."""

    def interval(self, alpha: float) -> tuple[float, float]:
        """Holds the true advantage; wrong at most `alpha` of the time."""


@dataclass(frozen=True)
class Distinguished:
    """Two worlds, told apart: of `ones` trials of the first, `hits` were recognised; of `others`, `alarms` were taken for it."""

    hits: int
    ones: int
    alarms: int
    others: int

    @property
    def advantage(self) -> float:
        return self.hits / self.ones - self.alarms / self.others

    def interval(self, alpha: float) -> tuple[float, float]:
        low, high = rate_interval(self.hits, self.ones, alpha / 2)
        least, most = rate_interval(self.alarms, self.others, alpha / 2)
        return low - most, high - least


@dataclass(frozen=True)
class Guessed:
    """One of `candidates` was to be found, in each of `trials`."""

    hits: int
    trials: int
    candidates: int

    @property
    def advantage(self) -> float:
        return self.hits / self.trials - 1 / self.candidates

    def interval(self, alpha: float) -> tuple[float, float]:
        low, high = rate_interval(self.hits, self.trials, alpha)
        return low - 1 / self.candidates, high - 1 / self.candidates


def between_two(epsilon: float, delta: float = 0.0) -> float:
    """The most that a loss of epsilon and delta allows an attacker between two worlds."""
    return math.tanh(epsilon / 2) + 2 * delta / (math.exp(epsilon) + 1)


def among(candidates: int, epsilon: float) -> float:
    """The most that a loss of epsilon between any two allows an attacker who looks for one of some candidates."""
    return 1 / (1 + (candidates - 1) * math.exp(-epsilon)) - 1 / candidates


def among_by_loss(losses: np.ndarray) -> float:
    """The most that losses between pairs allow an attacker who looks for one of n candidates.

    Let m_i be the chance that candidate i is guessed when it is the one. An output that makes i the guess has at least
    exp(-loss_ij) times its chance under j, so the sum over i of m_i w_i, with w_i = sum over j of exp(-loss_ij), is at most
    the sum of all chances, n. Within this and 0 <= m_i <= 1, the sum of m_i is largest where those with the least weight
    are guessed.

    Args:
        losses: Shape (n, n); 0 on the diagonal.
    """
    n, weights = len(losses), np.sort(np.exp(-losses).sum(axis=1))
    left, right = float(n), 0.0
    for weight in weights.tolist():
        part = min(1.0, left / weight)
        right, left = right + part, left - part * weight
    return right / n - 1 / n


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        attack: What the attacker does.
        allowed: The largest advantage that the policy allows; None if it promises nothing about this.
        claim: Where that number comes from, or what is not promised.
        protected: What the attacker gained from what the product sent.
        unprotected: What it gained without protection.
    """

    attack: str
    allowed: float | None
    claim: str
    protected: Measured
    unprotected: Measured

    def problems(self) -> list[str]:
        """What is wrong, each at most FALSE_ALARM of the time by chance."""
        found = []
        low = self.protected.interval(FALSE_ALARM)[0]
        if self.allowed is not None and low > self.allowed:
            found.append(
                f"{self.attack}: gains {low:.3f} at least, and {self.allowed:.3f} is allowed ({self.claim})"
            )
        low = self.unprotected.interval(FALSE_ALARM)[0]
        if low <= max(SUCCESS, self.allowed or 0):
            found.append(
                f"{self.attack}: gains no more than {low:.3f} for sure without protection, so it proves nothing"
            )
        return found


def table(findings: list[Finding]) -> str:
    """The findings in Markdown."""
    lines = [
        "| attack | allowed | protected (95 %) | unprotected | why so much is allowed |",
        "|---|---|---|---|---|",
    ]
    for found in findings:
        low, high = found.protected.interval(SHOWN)
        allowed = "no limit" if found.allowed is None else f"{found.allowed:.3f}"
        gained = f"{found.protected.advantage:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {found.attack} | {allowed} | {gained} | {found.unprotected.advantage:+.3f} | {found.claim} |"
        )
    return "\n".join(lines)
