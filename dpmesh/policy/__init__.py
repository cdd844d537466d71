"""What may leave: annotations and overlays become a frozen Plan per message type."""

from dpmesh.policy.diagnostics import Diagnostic, Severity
from dpmesh.policy.kinds.grid import Grid
from dpmesh.policy.kinds.kind import FieldKind
from dpmesh.policy.plan import AROUND, FieldPlan, Model, Plan, Pseudonymise, Scope
from dpmesh.policy.policy import Policy

__all__ = [
    "AROUND",
    "Diagnostic",
    "FieldKind",
    "FieldPlan",
    "Grid",
    "Model",
    "Plan",
    "Policy",
    "Pseudonymise",
    "Scope",
    "Severity",
]
