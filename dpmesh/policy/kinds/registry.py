"""Registry: which field kinds there are.

The file of a kind is named like the kind's field in the schema's oneof `dpmesh.v1.FieldRules.kind`, and holds the kind
as `KIND`. A kind of the schema without a file is refused in annotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from typing_extensions import override

from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.kinds.kind import Description, FieldKind, FieldSite
from dpmesh.policy.plan import FieldPlan
from dpmesh.v1 import privacy_pb2 as pb


class Unavailable(FieldKind):
    """A kind that the schema has and this version of dpmesh has not: it refuses all its fields.

    Args:
        name: Of the kind in the schema.
    """

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc] # Each instance stands for another kind.

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        site.error("kind-not-available", f"{self} does not work yet", "use suppress until it does")

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description("nothing")


def _load(name: str) -> FieldKind:
    module = f"{__package__}.{name}"
    try:
        kind: FieldKind = import_module(module).KIND
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return Unavailable(name)
    return kind


_NAMES = [field.name for field in pb.FieldRules.DESCRIPTOR.oneofs_by_name["kind"].fields]
_KINDS = {name: _load(name) for name in _NAMES}


def kind_of(rules: pb.FieldRules) -> FieldKind | None:
    """The kind of a field's rules; None if they choose none."""
    name = rules.WhichOneof("kind")
    return None if name is None else _KINDS[name]


@contextmanager
def registered(kind: FieldKind) -> Iterator[None]:
    """Makes a kind available for a while, in place of the kind that has its name.

    Policies keep what they compiled, so the kind is for policies that are made in this time.

    Raises:
        ValueError: The schema has no kind of this name.
    """
    if kind.name not in _KINDS:
        raise ValueError(f"dpmesh.v1.FieldRules has no kind {kind.name!r}")
    before = _KINDS[kind.name]
    _KINDS[kind.name] = kind
    try:
        yield
    finally:
        _KINDS[kind.name] = before
