"""Costs, caps, conversions and windows: pure functions, no I/O, no clock of their own."""

from dpmesh.accounting.amounts import AMOUNT, MAX_AMOUNT, amount_down, amount_up, exact
from dpmesh.accounting.conversions import Accounting, cap, epsilon_delta_to_rho, pure_to_rho, rho_to_epsilon
from dpmesh.accounting.costs import Cost
from dpmesh.accounting.windows import MAX_SECONDS, check_length, window_end, window_start

__all__ = [
    "AMOUNT",
    "MAX_AMOUNT",
    "MAX_SECONDS",
    "Accounting",
    "Cost",
    "amount_down",
    "amount_up",
    "cap",
    "check_length",
    "epsilon_delta_to_rho",
    "exact",
    "pure_to_rho",
    "rho_to_epsilon",
    "window_end",
    "window_start",
]
