"""Node: what compiling one message type at one place gave, before it becomes a Plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpmesh.accounting import Cost
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.compile.anys import Find, owned_by, within
from dpmesh.policy.plan import FieldPlan

# From a message to every instance of something within it.
Enter = Callable[[Any], Iterable[Any]]
# From a message to the id of the unit at every instance of a scope within it.
Walk = Callable[[Any], Iterable[bytes]]


@dataclass(slots=True)
class Fragment:
    """What is known of one message type at one place.

    Attributes:
        steps: What writes the protected message.
        bare: The same for on_exhausted = "suppress": only what needs no noise.
        fields: Everything decided, for people and estimators.
        local: What the unit's own values cost that have no unit yet.
        central: What aggregates cost.
        units: The scopes of units within: each one's path, cost, and the walk to its instances.
        unit: Reads the id of the unit that this message itself names.
        plain_unit: The name of the field that holds that id, and what maps its value to canonical bytes, where the
            value alone tells all.
        copies: It copies whole messages, whose unknown fields must go.
        anys: What finds the Anys that leave with this message.
        gaps: Required fields that leave only where they were set, so that the message must have been there.
        shown: What in it leaves only where the message was there, in words.
        values: How many values and messages it holds, even where nothing was set.
    """

    steps: list[Step] = field(default_factory=list)
    bare: list[Step] = field(default_factory=list)
    fields: list[FieldPlan] = field(default_factory=list)
    local: Cost = Cost.ZERO
    central: Cost = Cost.ZERO
    units: list[tuple[str, Cost, Walk]] = field(default_factory=list)
    unit: Callable[[Any], bytes] | None = None
    plain_unit: tuple[str, Callable[[Any], bytes]] | None = None
    copies: bool = False
    anys: list[Find] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    values: int = 0

    @property
    def scoped(self) -> bool:
        """Whether an instance of this message brings its own unit, so that its presence is a report."""
        return bool(self.units)

    def own(self, read: Callable[[Any], bytes], path: str, *, owned: bool) -> None:
        """A unit pays for all local values here, those of deeper units included.

        Args:
            read: Reads its id.
            path: Where the id stands.
            owned: The message stands in one that names a unit. Which messages it holds is the outer unit's data,
                so the outer unit pays for these values as well.
        """
        self.unit = read
        self.units.insert(0, (path, self.local, lambda message: (read(message),)))
        if not owned:
            self.local = Cost.ZERO
        self.anys = [owned_by(read, find) for find in self.anys]

    def absorb(self, inner: Fragment, items: int, enter: Enter) -> None:
        """Takes over a nested message that occurs `items` times."""
        self.fields += inner.fields
        self.local += inner.local.times(items)
        self.central += inner.central.times(items)
        self.copies = self.copies or inner.copies
        self.shown += inner.shown
        self.units += [(path, cost, _through(enter, walk)) for path, cost, walk in inner.units]
        self.anys += [within(enter, find) for find in inner.anys]

    def adopt(self, members: Sequence[Fragment]) -> None:
        """Takes over the members of a oneof, of which at most one leaves: the dearest covers all."""
        for member in members:
            self.fields += member.fields
            self.units += member.units
            self.anys += member.anys
            self.copies = self.copies or member.copies
            self.shown += member.shown
        self.values += max(member.values for member in members)
        self.local += _dearest([member.local for member in members])
        self.central += _dearest([member.central for member in members])


def _dearest(costs: Sequence[Cost]) -> Cost:
    return functools.reduce(Cost.largest, costs)


def _through(enter: Enter, walk: Walk) -> Walk:
    return lambda message: (unit for inner in enter(message) for unit in walk(inner))


def into_child(name: str) -> Enter:
    """To a message in a message, if it is set."""
    return lambda message: (getattr(message, name),) if message.HasField(name) else ()


def over_elements(name: str, items: int) -> Enter:
    """To the elements of a repeated message that are shown; 0 shows all."""
    end = items or None
    return lambda message: getattr(message, name)[:end]


def over_entries(name: str, items: int) -> Enter:
    """To the values of a map of messages that are shown; 0 shows all."""
    end = items or None

    def enter(message: Any) -> Iterator[Any]:
        held = getattr(message, name)
        return (held[key] for key in sorted(held)[:end])

    return enter
