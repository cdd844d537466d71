"""What may leave: annotations and overlays become a frozen Plan per message type."""

from dpmesh.policy.diagnostics import Diagnostic, Severity
from dpmesh.policy.plan import AROUND, FieldPlan, Grid, Kind, Model, Plan, Pseudonymise, Scope
from dpmesh.policy.policy import Policy

__all__ = [
    "AROUND",
    "Diagnostic",
    "FieldPlan",
    "Grid",
    "Kind",
    "Model",
    "Plan",
    "Policy",
    "Pseudonymise",
    "Scope",
    "Severity",
]
