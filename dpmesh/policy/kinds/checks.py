"""Checks of what rules say, with one text for all kinds."""

from __future__ import annotations

import math

from dpmesh.policy.diagnostics import BadRuleError


def above_zero(value: float, rule: str, *, name: str = "", fix: str = "") -> float:
    """A number of a rule that has to be finite and above 0.

    Args:
        value: The number.
        rule: The stable id of the diagnostic.
        name: The name of the number in the rule, where the id does not say it.
        fix: What to write instead.

    Raises:
        BadRuleError: It is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise BadRuleError(rule, f"{name} must be a finite number above 0, not {value:g}".lstrip(), fix)
    return value
