"""PolicySnapshot: everything that one version of the policy decides, behind one reference."""

from __future__ import annotations

import difflib
from typing import final

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh.errors import ConfigError, DpmeshError, ProtectionError
from dpmesh.mesh.billing import BillingTable, descriptor_of
from dpmesh.mesh.pricing import Budgets
from dpmesh.method_name import find_any_spelling
from dpmesh.policy import Plan, Policy, loaded_types
from dpmesh.policy.loaded_types import InForce
from dpmesh.policy.policy import is_foreign
from dpmesh.policy.required_policy import RequiredPolicy

# How many names that no loaded proto has an error quotes.
_NAMED = 5


@final
class PolicySnapshot:
    """One version of the policy, with its plans and their prices.

    A snapshot never changes what it decides about a message. Mesh.swap makes a new one and replaces the old one at
    once, so whatever uses one snapshot for a whole message can't mix two policies. Caches of its decisions belong to
    the snapshot, or are thrown away when the mesh has another one.

    Attributes:
        policy: The rules.
        billing: The plans of message classes, with their prices.
        digest: Names the policy in logs: a digest of its overlays.
        mode: "enforce" or "observe".
        has_quotas: Some budget has quotas, so that it matters who the consumer of a message is.
        has_rules: Says whether any rule is in force: an overlay, or an annotation of a type that is loaded.

    Raises:
        ConfigError: A quota does not belong under its budget.
    """

    __slots__ = ("billing", "digest", "has_quotas", "has_rules", "mode", "policy")

    def __init__(self, policy: Policy, budgets: Budgets, mode: str = "enforce") -> None:
        self.policy = policy
        self.mode = mode
        self.billing = BillingTable(policy, budgets)
        self.has_quotas = any(budget.is_quota for budget in self.billing.budgets.values())
        self.digest = policy.digest
        self.has_rules = InForce(policy)

    def protection(self, message_type: type) -> bool | None:
        """Whether messages of a class have anything to protect.

        Returns:
            True or False, which stay right as long as the snapshot is used. None where each message has to be judged
            by itself: its type can hold Anys or extensions, or is from another pool than protobuf's default pool.

        Raises:
            AnnotationError: The class's annotations are bad, so it can't be told.
            ProtectionError: It is no protobuf message class.
        """
        message = descriptor_of(message_type)
        plan = self.policy.plan(message)
        if plan is None:
            return None if is_foreign(message) else False
        return None if plan.is_open else True

    def pseudonymises(self, message_type: type) -> bool:
        """Whether pseudonyms may leave with messages of a class.

        Raises:
            AnnotationError: The class's annotations are bad.
            ProtectionError: It is no protobuf message class.
        """
        plan = self.policy.plan(descriptor_of(message_type))
        return plan is not None and plan.pseudonymises

    def requires(self, method: str) -> bool:
        """Whether a method's requests are refused unless a dpmesh sender protected them."""
        declared = find_any_spelling(method)
        return declared is not None and self.policy.requires(declared)

    def required_policy(self, method: str) -> RequiredPolicy | None:
        """What a receiver asks of the policy of a method's senders; None where any sender that protects will do.

        Raises:
            AnnotationError: The method's rules are bad, or those of its requests.
        """
        declared = find_any_spelling(method)
        return None if declared is None else self.policy.required_policy(declared)

    def is_trust_boundary(self, method: str) -> bool:
        """Whether no trace goes on over a method's requests."""
        declared = find_any_spelling(method)
        return declared is not None and self.policy.is_trust_boundary(declared)

    def send_slot(self, method: str) -> float | None:
        """The seconds between two slots in which a method's requests leave; None where they leave at once.

        Raises:
            AnnotationError: The method's rules are bad, or those of its requests.
        """
        declared = find_any_spelling(method)
        return None if declared is None else self.policy.send_slot(declared)

    def check_cover(self, method: str, cover: Message) -> None:
        """Refuses a cover that can't be released: requests alone would leave, and show where there are none.

        Nothing is charged.

        Args:
            method: Whose requests leave in slots.
            cover: What is to leave in slots without a request.

        Raises:
            ProtectionError: Its release would fail.
        """
        declared, plan = find_any_spelling(method), self.policy.plan(descriptor_of(type(cover)))
        if declared is None or plan is None or type(cover) is not GetMessageClass(declared.input_type):
            why = "it is no request of the method"
        else:
            try:
                plan.rehearse(cover)
            except DpmeshError as error:
                why = str(error)
            except Exception as error:  # Its text may quote a value.
                why = type(error).__name__
            else:
                return
        raise ProtectionError("SLOT_COVER", method, f"its cover can't be released: {why}")

    def _with_nearest(self, name: str) -> str:
        """A name that no loaded proto has, and the nearest one that there is."""
        close = difflib.get_close_matches(name, loaded_types.names(self.policy), n=1)
        return f"{name} (did you mean {close[0]}?)" if close else name

    def compile_loaded(self) -> list[Plan]:
        """Compiles every loaded type that can reach a rule, and reads every method's rules: a bad rule fails now.

        Returns:
            All plans.

        Raises:
            AnnotationError: An annotation of a loaded type is bad.
            ConfigError: The policy names something that no loaded proto has.
        """
        unresolved = self.policy.unresolved_overlays()
        if unresolved:
            # The nearest names take long to find, and a policy for other software may have thousands of names.
            named = [self._with_nearest(name) for name in unresolved[:_NAMED]]
            more = f" and {len(unresolved) - _NAMED} others" if len(unresolved) > _NAMED else ""
            raise ConfigError(
                f"policy: no loaded proto has {', '.join(named)}{more}; "
                "correct the name, or import its _pb2 module first"
            )
        plans = [self.policy.plan(message) for message in loaded_types.message_types(self.policy)]
        for method in loaded_types.methods():
            self.policy.send_slot(method)
            self.policy.required_policy(method)
        return [plan for plan in plans if plan is not None]
