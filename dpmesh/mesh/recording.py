"""Recording: decides what spans and metrics say of releases. It sees decisions, costs and names, never a message."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from dpmesh import method_name
from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Charge, Ledger
from dpmesh.mesh.pricing import PricedPlan
from dpmesh.policy import Plan, Pseudonymise
from dpmesh.telemetry import Telemetry, names, refused_status

# A budget is low once more than this part of it is spent.
_LOW = 0.8
# The span's hash of a unit changes with the budget's window; a lifetime budget has one window of this length.
_LIFETIME = 2.0**40
# How much of a method's name a span keeps. Peers can make up long names where a generic handler serves any method.
_NAME_KEPT = 256
_NO_ATTRIBUTES: Mapping[str, Any] = {}


class _Labels(dict[str, str]):
    """The label of each method in metrics. Names that peers make up share one, because series are kept for ever."""

    def __missing__(self, method: str) -> str:
        if method and method_name.find(method) is None:
            return names.OTHER  # It is not kept, because the method's proto may be loaded later.
        self[method] = method
        return method


class Recording:
    """What all records of one mesh share.

    Attributes:
        telemetry: Where records go.
        labels: The label of each method in metrics.
        epochs: The lengths in seconds of the epochs whose keys the ledger has to hold for the hashes of units.
        policy_state: The attributes that say whether the policy can be believed to be the newest; none if no source
            of policies is followed.
    """

    def __init__(self, telemetry: Telemetry, ledger: Ledger, pseudonymise: Pseudonymise) -> None:
        self.telemetry = telemetry
        self.labels = _Labels()
        self.policy_state = _NO_ATTRIBUTES
        self._ledger = ledger
        self._pseudonymise = pseudonymise
        self.epochs: tuple[float, ...] = ()
        self.note_budgets()

    def note_budgets(self) -> None:
        """Notes the budgets that the ledger has now."""
        self.epochs = tuple(sorted({_hash_epoch(budget) for budget in self._ledger.budgets}))

    def cut(self, plan: Plan, content: Any, method: str) -> None:
        """Counts what was cut from the snapshot of a released message, where the number of elements is public."""
        if plan.count_cut is not None and self.telemetry.metering:
            count = plan.count_cut(content)
            if count:
                self.telemetry.count(names.ITEMS_CUT, self.labels[method], count)

    def observed_refusal(self, method: str) -> None:
        """Counts a message that would be refused in another mode than observe."""
        if self.telemetry.metering:
            self.telemetry.count(names.OBSERVED_REFUSALS, self.labels[method], 1)

    def state(self, charges: Sequence[Charge]) -> str:
        """Whether one of the budgets that a release charged is low: one of the names' states."""
        for index, account, _ in charges:
            usage = self._ledger.usage(index, account)
            if usage is not None and usage[0] > _LOW * usage[1]:
                return names.STATE_LOW
        return names.STATE_OK

    def budget_attributes(self, charges: Sequence[Charge]) -> dict[str, Any]:
        """The attributes of the budget or quota of which most is spent, among those that a release charged.

        Spent and cap are in the budget's own accounting: epsilon if pure, rho if zcdp.
        """
        largest, tightest = -1.0, None
        for index, account, _ in charges:
            usage = self._ledger.usage(index, account)
            if usage is not None and usage[0] > largest * usage[1]:
                largest, tightest = usage[0] / usage[1], (index, account, usage)
        if tightest is None:
            return {}
        index, account, (spent, cap) = tightest
        budget = self._ledger.budgets[index]
        attributes: dict[str, Any] = {
            names.BUDGET_NAME: budget.name,
            names.BUDGET_SPENT: spent / AMOUNT,
            names.BUDGET_CAP: cap / AMOUNT,
            names.BUDGET_STATE: names.STATE_LOW if largest > _LOW else names.STATE_OK,
        }
        # Only the unit of a quota's account is hashed: the consumer is in no span, not even as a hash.
        unit = budget.unit(account)
        if unit:
            with suppress(LedgerError):  # No key was fetched yet, where what is observed leaves all the same.
                hashed = self._pseudonymise(b"dpmesh.unit\0" + unit, _hash_epoch(budget))
                attributes[names.UNIT] = hashed[:8].hex()
        return attributes


def _hash_epoch(budget: Budget) -> float:
    """How long the hash of a unit stays the same in spans, in seconds."""
    return min(budget.window or _LIFETIME, _LIFETIME)


class ReleaseRecord:
    """What telemetry is told of one message, which begins now: `settled` or `refused` is called, once."""

    __slots__ = ("_direction", "_method", "_priced", "_recording", "_started")

    def __init__(self, recording: Recording, priced: PricedPlan | None, method: str, direction: str) -> None:
        self._recording = recording
        self._priced = priced
        self._method = method
        self._direction = direction
        self._started = time.time_ns()

    def cut(self, plan: Plan, content: Any) -> None:
        """Counts what was cut from a snapshot."""
        self._recording.cut(plan, content, self._method)

    def observed_refusal(self) -> None:
        """Counts the message as one that would be refused in another mode than observe."""
        self._recording.observed_refusal(self._method)

    def settled(self, decision: str, epsilon: float, rho: float, charges: Sequence[Charge]) -> None:
        """Records a release that was not refused; the decision is one of the names'."""
        self._write(decision, epsilon, rho, self._recording.budget_attributes(charges))

    def refused(self, error: BaseException) -> None:
        """Records a release that was refused or cancelled, and why."""
        self._write(names.REFUSED, 0.0, 0.0, _exhausted_attributes(error))

    def _write(self, decision: str, epsilon: float, rho: float, budget_attributes: dict[str, Any]) -> None:
        telemetry, ended = self._recording.telemetry, time.time_ns()
        mechanisms, plan_attributes = _described(self._priced)
        if telemetry.metering:
            budget = budget_attributes.get(names.BUDGET_NAME, "")
            seconds = (ended - self._started) * 1e-9
            method = self._recording.labels[self._method]
            telemetry.add(method, mechanisms, decision, budget, 1, epsilon, seconds)
        if telemetry.tracing:
            attributes = {
                **plan_attributes,
                names.RPC_METHOD: self._method[:_NAME_KEPT],
                names.DIRECTION: self._direction,
                names.DECISION: decision,
                names.EPSILON: epsilon,
                names.RHO: rho,
                names.MESSAGES_COUNT: 1,
                **self._recording.policy_state,
                **budget_attributes,
            }
            telemetry.span(attributes, self._started, ended, refused=decision == names.REFUSED)


def _described(priced: PricedPlan | None) -> tuple[str, Mapping[str, Any]]:
    """The mechanisms and the attributes that are recorded of a priced plan."""
    return ("", _NO_ATTRIBUTES) if priced is None else (priced.mechanisms, priced.attributes)


def _exhausted_attributes(error: BaseException) -> dict[str, Any]:
    """The attributes of the budget that refused, if one did."""
    if not isinstance(error, BudgetExhaustedError):
        return {}
    return {names.BUDGET_NAME: error.budget, names.BUDGET_STATE: names.STATE_EXHAUSTED}


class StreamRecord:
    """One span for all messages of one direction of a stream. The first message opens it, and close() ends it.

    Metrics are added up and handed over about once a second, because handing over takes as long as a release.
    """

    def __init__(self, recording: Recording, method: str, direction: str) -> None:
        self._recording = recording
        self._method = method
        self._direction = direction
        self._span: Any = None
        # Of the current message's priced plan. The plan is not kept: that of a message with Anys holds the message.
        self._mechanisms = ""
        self._attributes = _NO_ATTRIBUTES
        self._last_attributes = _NO_ATTRIBUTES  # Of the last message that had a priced plan.
        self._started = 0
        self._state = names.STATE_OK
        self._decision = names.REFUSED
        self._charges: Sequence[Charge] = ()
        self._refusal: dict[str, Any] = {}
        self._messages = 0
        self._epsilon = 0.0
        self._rho = 0.0
        # What no metric has counted yet: messages, their epsilon, and how many seconds the last one took.
        self._uncounted = (0, 0.0, 0.0)
        self._counted_at = 0

    def message(self, priced: PricedPlan | None) -> Self:
        """Goes on to the next message, which begins now. Without a priced plan it is refused for that."""
        started = time.time_ns()
        if not self._started and self._recording.telemetry.tracing:  # It is the first one.
            self._span = self._recording.telemetry.open_span(
                {names.RPC_METHOD: self._method[:_NAME_KEPT]}, started
            )
        mechanisms, attributes = _described(priced)
        if attributes is not self._attributes:
            self._count()
        self._mechanisms, self._attributes = mechanisms, attributes
        self._last_attributes = attributes or self._last_attributes
        self._started = started
        return self

    def cut(self, plan: Plan, content: Any) -> None:
        """Counts what was cut from the current message's snapshot."""
        self._recording.cut(plan, content, self._method)

    def observed_refusal(self) -> None:
        """Counts the current message as one that would be refused in another mode than observe."""
        self._recording.observed_refusal(self._method)

    def settled(self, decision: str, epsilon: float, rho: float, charges: Sequence[Charge]) -> None:
        """Records that the current message was not refused."""
        if decision != self._decision or self._started > self._counted_at + 1e9:
            self._count()
        self._decision = decision
        self._charges = charges
        self._messages += 1
        self._epsilon += epsilon
        self._rho += rho
        count, lost, _ = self._uncounted
        self._uncounted = (count + 1, lost + epsilon, (time.time_ns() - self._started) * 1e-9)
        self._note_state(self._recording.state(charges))

    def refused(self, error: BaseException) -> None:
        """Records that the current message was refused or cancelled, and why."""
        self._count()
        self._decision = names.REFUSED
        self._refusal = _exhausted_attributes(error)
        self._uncounted = (1, 0.0, (time.time_ns() - self._started) * 1e-9)
        self._count()
        self._note_state(self._refusal.get(names.BUDGET_STATE, self._state))

    def _note_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            if self._span is not None:
                self._span.add_event(names.BUDGET_EVENT, {names.BUDGET_STATE: state})

    def _budget_attributes(self) -> dict[str, Any]:
        return self._refusal or self._recording.budget_attributes(self._charges)

    def _count(self) -> None:
        """Hands what no metric has counted yet over to telemetry."""
        (count, epsilon, seconds), self._uncounted = self._uncounted, (0, 0.0, 0.0)
        self._counted_at = self._started
        telemetry = self._recording.telemetry
        if count and telemetry.metering:
            budget = self._budget_attributes().get(names.BUDGET_NAME, "")
            method = self._recording.labels[self._method]
            telemetry.add(method, self._mechanisms, self._decision, budget, count, epsilon, seconds)

    def close(self) -> None:
        """Ends the span; calling it again does nothing."""
        self._count()
        span, self._span = self._span, None
        if span is None:
            return
        if self._decision == names.REFUSED:
            span.set_status(refused_status())
        span.set_attributes(
            {
                **self._last_attributes,
                names.DIRECTION: self._direction,
                names.DECISION: self._decision,
                names.EPSILON: self._epsilon,
                names.RHO: self._rho,
                names.MESSAGES_COUNT: self._messages,
                **self._recording.policy_state,
                **self._budget_attributes(),
            }
        )
        span.end()


# The record of one message, or of a stream whose current message it is.
Record = ReleaseRecord | StreamRecord
