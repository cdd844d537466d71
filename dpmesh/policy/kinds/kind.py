"""FieldKind: everything that depends on the kind of a field, and FieldSite: where a field with a rule stands.

The compiler, the reports and the estimators ask the kind of a field; none of them knows which kinds there are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.descriptors import is_map
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.plan import FieldPlan
from dpmesh.policy.sizes import Size, unbounded
from dpmesh.v1 import privacy_pb2 as pb

if TYPE_CHECKING:
    from dpmesh.policy.compile.rule_lookup import RuleLookup


# Repeated fields are filled up to max_items in every message.
ITEMS_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class FieldSite:
    """Where a field stands: what its rule can't know by itself.

    Attributes:
        field: Its descriptor.
        path: From the root message.
        origin: Who made the rule.
        share: Its part of the message's epsilon, if the message set one.
        max_items: The public length of a repeated field, 0 when none was set.
        instances: How often its message occurs in one root message.
        lookup: The rules of other elements.
        owned: Another field, of its message or of a message around it, names a unit, which pays for local values.
        public_length: As many elements leave as there are, up to max_items.
        memoize: How its answers are memoized, if they are.
    """

    field: FieldDescriptor
    path: str
    origin: str
    share: Fraction | None
    max_items: int
    instances: int
    lookup: RuleLookup
    owned: bool
    public_length: bool = False
    memoize: pb.Memoize | None = None

    def error(self, rule: str, text: str, fix: str = "") -> None:
        """Reports what keeps the field's message type from being released."""
        self.lookup.diagnostics.error(self.lookup.name(self.field), rule, text, fix)

    def bad_rule(self, bad: BadRuleError) -> None:
        """Reports what ended the compilation of the field."""
        self.error(bad.rule, bad.text, bad.fix)

    def warn(self, rule: str, text: str, fix: str = "") -> None:
        """Reports what is worth a look."""
        self.lookup.diagnostics.warn(self.lookup.name(self.field), rule, text, fix)

    def repeats(self) -> int:
        """How many elements one message instance shows.

        Raises:
            BadRuleError: It is a map, or max_items does not fit.
        """
        if is_map(self.field):
            raise BadRuleError("kind-type", "maps of plain values are not protected yet", "use suppress")
        if not self.field.is_repeated:
            if self.max_items:
                raise BadRuleError("max-items", "max_items is for repeated fields and maps", "remove it")
            return 1
        return checked_items(self.max_items)


def checked_items(max_items: int) -> int:
    """The public length of a repeated field.

    Raises:
        BadRuleError: It is missing or beyond ITEMS_LIMIT.
    """
    if not 1 <= max_items <= ITEMS_LIMIT:
        raise BadRuleError(
            "max-items",
            "the length of a repeated field is data too, so it needs a public one",
            f"set max_items, between 1 and {ITEMS_LIMIT}",
        )
    return max_items


@dataclass(frozen=True, slots=True)
class Description:
    """What `dpmesh plan` shows of a field, besides its loss.

    Attributes:
        output: What may leave, in words.
        error: A number's worst-case standard deviation, in the field's own units; None if it overflows a float.
        truth: The probability that what leaves of a category names it.
        low: A number's smallest output.
        high: A number's largest output.
    """

    output: str
    error: float | None = None
    truth: float | None = None
    low: float | None = None
    high: float | None = None


class FieldKind(abc.ABC):
    """One kind of field.

    A kind has no state. `str(kind)` is its name. A kind that draws noise derives from `NoisedKind`.

    Attributes:
        name: The kind's field in the schema's oneof `dpmesh.v1.FieldRules.kind`, and its name for people.
        passes: The field leaves as it is, with all that is in it.
        protects: It counts as a protected field: its value is noised, replaced or dropped.
        is_unit: The field holds the privacy unit's id. It is compiled before all other fields of its message.
        on_oneof: It stands on a oneof instead of a field.
        elementwise: Each element of a repeated field is a value by itself; otherwise the whole field is one value.
        absent: What an absent value counts as before noise, for kinds that are not elementwise and for messages.
    """

    name: ClassVar[str]
    passes: ClassVar[bool] = False
    protects: ClassVar[bool] = True
    is_unit: ClassVar[bool] = False
    on_oneof: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True
    absent: ClassVar[Any] = 0

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<FieldKind {self.name}>"

    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        """Adds a field to the fragment of its message. A field of messages with a rule is not descended into.

        This adds the field's plan and no step, so that the field never leaves.

        Args:
            fragment: What receives the field's plan, steps and cost.
            site: The field, and where to report what is wrong.
            rules: What the schema's message of this kind says, such as a `dpmesh.v1.Numeric`.
        """
        fragment.fields.append(self.plan(site, rules))

    def plan(self, site: FieldSite, rules: Any) -> FieldPlan:
        """Decides what is done to a field.

        Raises:
            BadRuleError: The rule contradicts itself, the field's type or what is implemented.
        """
        return FieldPlan(site.path, site.field.full_name, self, site.origin)

    def needs_share(self, rules: Any) -> bool:
        """Whether a field with these rules takes a part of its message's epsilon."""
        return False

    @abc.abstractmethod
    def describe(self, plan: FieldPlan) -> Description:
        """Says to people what leaves."""

    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        """How many bytes the field takes, its tag included, in a message that a budget has paid for."""
        return unbounded(plan.path)

    def states(self, plan: FieldPlan) -> int | None:
        """How many values the field can have, as indexes from 0; None for kinds whose answers can't be memoized."""
        return None

    def refuses(self, plan: FieldPlan) -> tuple[str, str] | None:
        """Which values make a release fail, and what to write in the rule instead; None where no value does."""
        return None

    def pseudonym_epoch(self, plan: FieldPlan) -> float | None:
        """How long a pseudonym that leaves stays the same, in seconds; None where none leaves."""
        return None

    def reading(self, plan: FieldPlan) -> Any:
        """How estimators read what leaves: a payload of numbers, categories, places, vectors or histograms.

        By default this is the plan's payload. What is none of these has no estimates.
        """
        return plan.payload

    def received(self, value: Any) -> Iterable[Any]:
        """The numbers or categories in one received value: of a kind that is not elementwise, or of a message."""
        return (value,)
