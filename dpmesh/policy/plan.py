"""Plan: what is done to each field of one message type, decided once and immutable."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.accounting import Cost
from dpmesh.errors import ProtectionError
from dpmesh.noise.entropy import KeyStream
from dpmesh.policy.compile.anys import Find
from dpmesh.policy.sizes import Size

if TYPE_CHECKING:
    from dpmesh.noise.draws import Draws
    from dpmesh.policy.kinds.kind import FieldKind


class Pseudonymise(Protocol):
    """Makes the pseudonyms that one consumer receives."""

    def __call__(self, value: bytes, epoch: float, namespace: str = "", /) -> bytes:
        """Maps an id to its pseudonym in this epoch, 16 bytes.

        Args:
            value: The id's canonical bytes.
            epoch: The length of an epoch in seconds.
            namespace: Pseudonyms of different namespaces can't be joined. "" is that of the units' ids.
        """


class Answering(Pseudonymise, Protocol):
    """The pseudonym function of a message whose memoized fields are answered for its unit in one epoch."""

    def codes(self, label: str, draws: Draws, states: int) -> Sequence[int]:
        """The codes of a field's answers, one for each value's index.

        Args:
            label: Which of the message's fields it is.
            draws: The mechanism.
            states: How many values the field can have.
        """


class Build(Protocol):
    """Builds protected messages of one type: generated code, whose text is Plan.source."""

    def __call__(self, snapshot: Any, pseudonymise: Pseudonymise, /) -> Message:
        """Maps a message's snapshot to a new, protected message.

        Raises:
            ProtectionError: It can't be protected.
        """


class Model(enum.StrEnum):
    """Whose value a number is: the unit's own, or an aggregate over many units."""

    LOCAL = "local"
    CENTRAL = "central"


@dataclass(frozen=True, slots=True)
class FieldPlan:
    """One field, oneof choice or unit id, and what is done to it.

    Attributes:
        path: From the root message: names joined by dots; "[]" marks repeated, "{}" a map ("rows[].delay").
        name: The full name of the field or oneof, "package.Message.field".
        kind: What is done. It answers all questions that depend on the kind.
        origin: Who decided: "annotation", "overlay", "overlay by path", or "unannotated".
        model: Local or central, where noise is drawn; None otherwise.
        epsilon: The loss of one release of the whole field in one message instance, or None for the Gaussian.
        rho: The Gaussian's zCDP cost, else None.
        delta: The declared delta of a Gaussian or of a histogram without public keys, else 0.
        repeats: How many elements of this field one message instance shows (1 unless repeated).
        instances: How often the field's message occurs in one root message (the product of max_items above it).
        cost: What one message instance pays for it, all repeats together.
        mechanism_name: What draws the noise of each element; "" where nothing is drawn.
        payload: What only this kind of field has: a dataclass of the kind's own file, or None.
        public_lengths: The paths, without "[]" and "{}" at their ends, of the repeated fields whose number of elements
            is public: of this field, and of those that its message stands in. They are not filled up.
        memo: How its answers are memoized, or None. Then `cost` is what one unit pays for it in one epoch.
    """

    path: str
    name: str
    kind: FieldKind
    origin: str
    model: Model | None = None
    epsilon: Fraction | None = None
    rho: Fraction | None = None
    delta: float = 0.0
    repeats: int = 1
    instances: int = 1
    cost: Cost = Cost.ZERO
    mechanism_name: str = ""
    payload: Any = None
    public_lengths: tuple[str, ...] = ()
    memo: Memo | None = None


@dataclass(frozen=True, slots=True)
class Memo:
    """Answers that are drawn once for each unit, epoch and value.

    Attributes:
        epoch: How long answers last, in seconds.
        states: How many values the field can have: that many answers are paid for.
    """

    epoch: float
    states: int


@dataclass(frozen=True, slots=True)
class Memos:
    """All memoized fields of a plan.

    Attributes:
        epoch: How long their answers last, in seconds.
        cost: What one unit pays in one epoch for all answers.
        label: Differs where answers have another law or another price. What was paid for one label pays for no other.
        unit: Maps a snapshot to the unit's canonical bytes. Raises ProtectionError.
        build: What Plan.build is, as if every value that is not memoized were absent: for on_exhausted = "replay".
    """

    epoch: float
    cost: Cost
    label: bytes
    unit: Callable[[Any], bytes]
    build: Build


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of a message whose loss belongs to one owner.

    Attributes:
        path: Where the unit's id stands, or "" when the loss belongs to no unit (global budgets pay).
        cost: What one instance of the scope costs.
    """

    path: str
    cost: Cost


# The path of the scope of a packed message's local values without a unit, for which the units around its Any pay.
AROUND = "^"


@dataclass(frozen=True, slots=True)
class Anys:
    """How messages of a type leave that can hold Anys. A message is opened first, in a copy of its own.

    Attributes:
        find: Finds the Anys that leave with a message.
        protect: Maps a copy of a message, whose Anys hold protected messages already, and the pseudonym function to a
            new, protected message.
        blank: What `protect` is for Plan.build, for Plan.build_blank.
        alone: Nothing else of the type is protected.
        extendable: The type reaches types whose extensions can make it a protected one, when they are imported.
    """

    find: Find
    protect: Callable[[Message, Pseudonymise], Message]
    blank: Callable[[Message, Pseudonymise], Message]
    alone: bool = False
    extendable: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """How messages of one type leave.

    Attributes:
        descriptor: The message type.
        version: The digest of everything that decided this plan.
        fields: All fields that the plan names, in order of declaration, depth first.
        scopes: Who pays what; a scope inside a repeated field is paid once an instance.
        snapshot: Maps a message to what it holds at this moment, in one step that no other thread can interrupt. All
            functions below read the snapshot only, so that what is billed is what leaves. It is a tuple of the
            fields' values, or a copy of the message if it has more than plain fields.
        payers: Maps a snapshot to (scope index, unit's canonical bytes) pairs. Raises ProtectionError.
        unit: Where one unit, in the message itself, pays for all of it: maps a snapshot to the unit's canonical bytes.
            None otherwise. Raises ProtectionError.
        build: Maps a snapshot and the pseudonym function to a new, protected message. Raises ProtectionError.
        build_blank: What `build` is, as if every value were absent: for on_exhausted = "suppress".
        mechanisms: The names of all mechanisms, sorted, for telemetry.
        protected: How many fields are noised or suppressed.
        cost: The most that one message can cost all owners together, with one instance of each scope.
        delta: The sum of the deltas that its Gaussians and its histograms without public keys were declared with.
        labels: Of the message type and of the messages in it that are protected or can hold an Any, sorted.
        messages: The full names of the types that `labels` is about, sorted.
        ownerless: What the scope of no unit costs, in two parts. The first is local values: where the message is packed
            in an Any, the units around the Any pay for them. The second is aggregates.
        anys: What opens a message that can hold Anys, without which `build` and `build_blank` refuse it. None where no
            message of the type can hold one. `cost` counts nothing of what Anys pack.
        count_cut: Counts what is cut from those fields of a snapshot whose number of elements is public; None where
            there are no such fields. How much is cut from other fields is data.
        shows_presence: What leaves only where it was there, or where its message was, in words; so do its units.
        size: How long messages are when they are encoded, before padding, where a budget has paid.
        pad_to: The sizes in bytes, one of which each protected message has; empty where it is as long as it is.
        memos: The memoized fields, if there are any. `cost` and `scopes` count nothing of them, and `build` needs an
            Answering for them.
        source: The generated code of `build`, `build_blank` and all that they call: see `dpmesh.policy.codegen`.
    """

    descriptor: Descriptor
    version: str
    fields: tuple[FieldPlan, ...]
    scopes: tuple[Scope, ...]
    snapshot: Callable[[Any], Any]
    payers: Callable[[Any], Sequence[tuple[int, bytes]]]
    unit: Callable[[Any], bytes] | None
    build: Build
    build_blank: Build
    mechanisms: tuple[str, ...]
    protected: int
    cost: Cost
    delta: float
    size: Size
    labels: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    ownerless: tuple[Cost, Cost] = (Cost.ZERO, Cost.ZERO)
    anys: Anys | None = None
    count_cut: Callable[[Any], int] | None = None
    shows_presence: tuple[str, ...] = ()
    pad_to: tuple[int, ...] = ()
    source: str = ""
    memos: Memos | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is protected but what Anys pack, so that it depends on each message."""
        return self.anys is not None and self.anys.alone

    @property
    def pseudonymises(self) -> bool:
        """Whether pseudonyms may leave, so that it matters who receives the messages."""
        return self.anys is not None or any(
            field.kind.pseudonym_epoch(field) is not None for field in self.fields
        )

    @property
    def epochs(self) -> frozenset[float]:
        """The lengths in seconds of the epochs of all pseudonyms and memoized answers: `build` needs their keys."""
        lengths = {field.kind.pseudonym_epoch(field) for field in self.fields}
        if self.memos is not None:
            lengths.add(self.memos.epoch)
        return frozenset(length for length in lengths if length is not None)

    def owners(self, message: Message) -> Sequence[tuple[int, bytes]]:
        """What `payers` gives for a message that is not changed meanwhile."""
        return self.payers(self.snapshot(message))

    def protect(self, message: Message, pseudonymise: Pseudonymise) -> Message:
        """What `build` makes of a message that is not changed meanwhile. This does not change it either."""
        return self.build(self.snapshot(message), pseudonymise)

    def rehearse(self, message: Message) -> None:
        """Does what a release does, but for what Anys pack, and throws away what it gives: nothing is charged.

        Raises:
            ProtectionError: The message can't be protected.
        """
        content = self.snapshot(message)
        self.payers(content)
        if self.anys is None and not self.build(content, _Rehearsal()).IsInitialized():
            raise ProtectionError("INTERNAL", self.descriptor.full_name, "lacks a required field")

    def blank(self, message: Message, pseudonymise: Pseudonymise) -> Message:
        """What `build_blank` makes of a message that is not changed meanwhile."""
        return self.build_blank(self.snapshot(message), pseudonymise)


class _Rehearsal:
    """An Answering whose pseudonyms and answers are nobody's."""

    def __call__(self, value: bytes, epoch: float, namespace: str = "", /) -> bytes:
        return bytes(16)

    def codes(self, label: str, draws: Draws, states: int) -> Sequence[int]:
        codes: Sequence[int] = draws.block(states, KeyStream()).tolist()
        return codes
