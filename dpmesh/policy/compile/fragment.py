"""Fragment: what compiling one message type at one site gave, before it becomes a part of a Plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.accounting import Cost
from dpmesh.policy.codegen.steps import Step, passed
from dpmesh.policy.compile.anys import Find, owned_by, within
from dpmesh.policy.descriptors import is_map
from dpmesh.policy.plan import FieldPlan
from dpmesh.policy.sizes import NOTHING, Size

# From a message to every instance of something within it.
Enter = Callable[[Any], Iterable[Any]]
# From a message to the id of the unit at every instance of a scope within it.
ReadUnits = Callable[[Any], Iterable[bytes]]
# From a message to how many elements are cut from it.
CountCut = Callable[[Any], int]


class UnitScope(NamedTuple):
    """What belongs to one unit.

    Attributes:
        path: Where the unit's id stands.
        cost: What one instance costs the unit.
        read: Reads the unit of each instance.
    """

    path: str
    cost: Cost
    read: ReadUnits


@dataclass(slots=True)
class Fragment:
    """What is known of one message type at one site.

    Attributes:
        steps: What writes the protected message.
        blank_steps: What writes it under on_exhausted = "suppress": only what needs no noise.
        replay_steps: What writes it under on_exhausted = "replay": the blank steps and the memoized fields.
        memoized: The plans of memoized fields.
        fields: Everything decided, for people and estimators.
        local: What the units' own values cost that no unit pays for yet.
        central: What aggregates cost.
        units: The scopes of units within.
        unit: Reads the id of the unit that this message itself names.
        plain_unit: The name of the field that holds that id, and what maps its value to canonical bytes, where the
            value alone tells all.
        copies: It copies whole messages, whose unknown fields must go.
        anys: What finds the Anys that leave with this message.
        unset_required: Required fields that leave only where they were set, so that the message must have been there.
        shows_presence: What in it leaves only where the message was there, in words.
        cuts: What counts the elements that are cut from fields whose number of elements is public.
        values: How many values and messages it holds, even where nothing was set.
        size: How long it is when it is encoded, with all noise that it can have.
    """

    steps: list[Step] = field(default_factory=list)
    blank_steps: list[Step] = field(default_factory=list)
    replay_steps: list[Step] = field(default_factory=list)
    memoized: list[FieldPlan] = field(default_factory=list)
    fields: list[FieldPlan] = field(default_factory=list)
    local: Cost = Cost.ZERO
    central: Cost = Cost.ZERO
    units: list[UnitScope] = field(default_factory=list)
    unit: Callable[[Any], bytes] | None = None
    plain_unit: tuple[str, Callable[[Any], bytes]] | None = None
    copies: bool = False
    anys: list[Find] = field(default_factory=list)
    unset_required: list[str] = field(default_factory=list)
    shows_presence: list[str] = field(default_factory=list)
    cuts: list[CountCut] = field(default_factory=list)
    values: int = 0
    size: Size = NOTHING

    @property
    def scoped(self) -> bool:
        """Whether an instance of this message brings its own unit, so that its presence is a report."""
        return bool(self.units)

    def add_step(self, step: Step) -> None:
        """Adds what needs no noise, and so leaves under on_exhausted = "suppress" too."""
        self.steps.append(step)
        self.add_blank_steps([step])

    def add_blank_steps(self, steps: Sequence[Step]) -> None:
        """Adds what leaves where a budget is exhausted, under on_exhausted = "suppress" and under "replay"."""
        self.blank_steps += steps
        self.replay_steps += steps

    def add_copy(self, field: FieldDescriptor) -> None:
        """Adds a field that leaves as it is."""
        self.add_step(passed(field))
        self.copies = self.copies or field.message_type is not None
        if field.is_required:
            self.unset_required.append(field.full_name)
        self.shows_presence.append(f"{field.full_name} leaves as it is")

    def claim_for_unit(self, read: Callable[[Any], bytes], path: str, *, owned: bool) -> None:
        """Makes a unit pay for all local values here, those of deeper units included.

        Args:
            read: Reads its id.
            path: Where the id stands.
            owned: The message stands in one that names a unit. Which messages it holds is the outer unit's data,
                so the outer unit pays for these values as well.
        """
        self.units.insert(0, UnitScope(path, self.local, lambda message: (read(message),)))
        if not owned:
            self.local = Cost.ZERO
        self.anys = [owned_by(read, find) for find in self.anys]

    def add_nested(self, inner: Fragment, items: int, enter: Enter) -> None:
        """Adds a nested message that occurs `items` times; its steps are the caller's to add."""
        self.fields += inner.fields
        self.local += inner.local.times(items)
        self.central += inner.central.times(items)
        self.copies = self.copies or inner.copies
        self.shows_presence += inner.shows_presence
        self.units += [UnitScope(path, cost, _through(enter, read)) for path, cost, read in inner.units]
        self.cuts += [_in_all(enter, count) for count in inner.cuts]
        self.anys += [within(enter, find) for find in inner.anys]

    def add_oneof(self, members: Sequence[Fragment]) -> None:
        """Adds the members of a oneof, of which at most one leaves: the largest cost covers all."""
        for member in members:
            self.fields += member.fields
            self.units += member.units
            self.cuts += member.cuts
            self.anys += member.anys
            self.copies = self.copies or member.copies
            self.shows_presence += member.shows_presence
        self.values += max(member.values for member in members)
        self.local += functools.reduce(Cost.largest, [member.local for member in members])
        self.central += functools.reduce(Cost.largest, [member.central for member in members])


def _in_all(enter: Enter, count: CountCut) -> CountCut:
    return lambda message: sum(map(count, enter(message)))


def cut_from(name: str, items: int) -> CountCut:
    """What counts the elements of a repeated field or map beyond so many."""
    return lambda message: max(0, len(getattr(message, name)) - items)


def _through(enter: Enter, read: ReadUnits) -> ReadUnits:
    return lambda message: (unit for inner in enter(message) for unit in read(inner))


def into_all(field: FieldDescriptor) -> Enter:
    """To all messages that a field holds."""
    if is_map(field):
        return over_entries(field.name, 0)
    return over_elements(field.name, 0) if field.is_repeated else into_child(field.name)


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
