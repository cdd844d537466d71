"""Epochs: how long pseudonyms and memoized answers stay equal."""

from __future__ import annotations

from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.v1 import privacy_pb2 as pb

_DEFAULT_SECONDS = 86_400.0
# What a Duration may be, by its own rules.
_LONGEST_SECONDS = 315_576_000_000


def seconds(rules: pb.Unit | pb.Pseudonym | pb.Memoize) -> float:
    """The length of an epoch; 24 h when it is absent."""
    return rules.epoch.seconds + rules.epoch.nanos / 1e9 if rules.HasField("epoch") else _DEFAULT_SECONDS


def checked_seconds(rules: pb.Unit | pb.Pseudonym | pb.Memoize) -> float:
    """The length of an epoch that can be used.

    Raises:
        BadRuleError: It is shorter than 1 s or longer than 10,000 years.
    """
    epoch = seconds(rules)
    if not 1 <= epoch <= _LONGEST_SECONDS:
        raise BadRuleError("epoch", "epoch must be from 1 s to 10,000 years")
    return epoch
