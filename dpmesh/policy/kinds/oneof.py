"""Oneof: which member of a oneof is set, randomized over the members and "none"."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from dpmesh.accounting import Cost
from dpmesh.noise import categorical
from dpmesh.policy.kinds.categorical import Categorical
from dpmesh.policy.kinds.category import CategoricalPayload
from dpmesh.policy.plan import FieldPlan, Model

# The choice of a oneof of which no member is set.
NOTHING = "none"


class Oneof(Categorical):
    """Not in the schema: the choice of a oneof, whose rule is an OneofRules."""

    name = "oneof"
    on_oneof = True

    def plan_choice(
        self, path: str, name: str, origin: str, members: Sequence[str], epsilon: Fraction, instances: int
    ) -> FieldPlan:
        """The plan of a oneof's choice.

        Args:
            path: Of the oneof, from the root message.
            name: The oneof's full name.
            origin: Who made its rule.
            members: The names of its fields.
            epsilon: The loss of the choice.
            instances: How often its message occurs in one root message.
        """
        mechanism = categorical.make(len(members) + 1, epsilon)
        return FieldPlan(
            path=path,
            name=name,
            kind=self,
            origin=origin,
            model=Model.LOCAL,
            epsilon=epsilon,
            instances=instances,
            cost=Cost.pure(epsilon),
            mechanism_name=str(mechanism.kind),
            payload=CategoricalPayload((*members, NOTHING), mechanism, NOTHING),
        )


KIND = Oneof()
