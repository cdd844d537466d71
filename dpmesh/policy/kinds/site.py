"""FieldSite: where a field with a rule stands, and how many values a message shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.policy.descriptors import is_map
from dpmesh.policy.diagnostics import BadRuleError

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
    """

    field: FieldDescriptor
    path: str
    origin: str
    share: Fraction | None
    max_items: int
    instances: int
    lookup: RuleLookup
    owned: bool

    def error(self, rule: str, text: str, fix: str = "") -> None:
        """Reports what keeps the field's message type from being released."""
        self.lookup.diagnostics.error(self.field.full_name, rule, text, fix)

    def warn(self, rule: str, text: str, fix: str = "") -> None:
        """Reports what is worth a look."""
        self.lookup.diagnostics.warn(self.field.full_name, rule, text, fix)

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
