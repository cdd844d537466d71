"""What may leave: annotations and overlays become a frozen Plan per message type."""

from dpmesh.policy.plan import AROUND, Alias, FieldPlan, Grid, Kind, Model, Plan, Scope
from dpmesh.policy.policy import Policy
from dpmesh.policy.problem import Problem, Severity

__all__ = [
    "AROUND",
    "Alias",
    "FieldPlan",
    "Grid",
    "Kind",
    "Model",
    "Plan",
    "Policy",
    "Problem",
    "Scope",
    "Severity",
]
