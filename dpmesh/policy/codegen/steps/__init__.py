"""The compiled inside of a plan: steps, each of which writes one field, and the functions that run them.

A protected message is built from nothing, field by field, so what no step writes does not leave: unknown fields,
extensions and suppressed fields need no code to stop them. The caller's message is only read.
"""

from dpmesh.policy.codegen.steps.functions import build, run_all
from dpmesh.policy.codegen.steps.nested import child, children, choice, entries, open_choice
from dpmesh.policy.codegen.steps.snapshots import copier, flat_fields, reader
from dpmesh.policy.codegen.steps.step import Run, Step
from dpmesh.policy.codegen.steps.values import (
    drop_extensions,
    emptied,
    passed,
    random_id,
    repeated,
    require_items,
    require_set,
    single,
)

__all__ = [
    "Run",
    "Step",
    "build",
    "child",
    "children",
    "choice",
    "copier",
    "drop_extensions",
    "emptied",
    "entries",
    "flat_fields",
    "open_choice",
    "passed",
    "random_id",
    "reader",
    "repeated",
    "require_items",
    "require_set",
    "run_all",
    "single",
]
