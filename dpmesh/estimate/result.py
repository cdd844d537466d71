"""Estimate: what an estimator answers; EstimateError: what it raises."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpmesh.errors import DpmeshError


class EstimateError(DpmeshError):
    """An estimate that can't be made; the text names the field and never holds a value.

    Attributes:
        field: The field's path, or the message type where no field is to blame.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")
        self.field = field


def not_released(field: str, what: str) -> EstimateError:
    """The error for values that no sender under the reader's policy can have released.

    Args:
        field: The field's path.
        what: What shows it, as a clause.
    """
    return EstimateError(field, f"{what}, so this policy has not released it")


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate with a confidence interval, in the field's own units.

    Attributes:
        value: The estimate, unbiased unless the estimator says otherwise. So it may leave the range of possible
            values (a share below 0).
        low: The interval's lower end.
        high: The interval's upper end.
        n: How many noisy values it rests on.
        confidence: How often such an interval holds the true figure.
        per_place: It is over all places of a field that may be absent, where an absent value counts as the default
            that fills its place.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float
    per_place: bool = False

    @property
    def margin(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def covers(self, figure: float) -> bool:
        """Whether a figure lies in the interval."""
        return self.low <= figure <= self.high

    def scaled(self, factor: float) -> Estimate:
        """The estimate of so many times the figure."""
        low, high = sorted((self.low * factor, self.high * factor))
        return replace(self, value=self.value * factor, low=low, high=high)

    def __str__(self) -> str:
        about = " per place" if self.per_place else ""
        return f"{self.value:.6g} [{self.low:.6g}, {self.high:.6g}]{about}"
