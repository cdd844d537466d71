"""Registry: which field kinds there are.

The file of a kind is named like the kind's field in the schema's oneof `dpmesh.v1.FieldRules.kind`, and holds the kind
as `KIND`. Each kind of the schema has a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from dpmesh.policy.kinds.kind import FieldKind
from dpmesh.v1 import privacy_pb2 as pb

_NAMES = [field.name for field in pb.FieldRules.DESCRIPTOR.oneofs_by_name["kind"].fields]
_KINDS: dict[str, FieldKind] = {name: import_module(f"{__package__}.{name}").KIND for name in _NAMES}


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
