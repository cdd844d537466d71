"""Recording: what spans and metrics say of releases. It sees decisions, costs and names; never a message."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Charge, Ledger
from dpmesh.mesh.pricing import PricedPlan
from dpmesh.policy.policy import find_method
from dpmesh.telemetry import Telemetry, names, refused_status

# A budget of which more than this is spent is low.
_LOW = 0.8
# The span's hash of a unit changes with the budget's window; a lifetime budget has one window of this length.
_LIFETIME = 2.0**40
# Where a generic handler serves any method, peers make names up, as long as gRPC lets them. A span keeps so much.
_NAME_KEPT = 256


class Record(Protocol):
    """What the corridor tells of a release, once."""

    def settled(self, decision: str, epsilon: float, rho: float, charges: Sequence[Charge]) -> None:
        """The release was decided like this, and cost that."""

    def refused(self, error: BaseException) -> None:
        """The release was refused, or what waited for it was cancelled."""


class _Labels(dict[str, str]):
    """What metrics call a method: a series is kept for ever, so names that peers make up share one."""

    def __missing__(self, method: str) -> str:
        # Other spellings of a name, of which there are as many as one likes, are not found.
        if method and find_method(method) is None:
            return names.OTHER  # Not kept: its proto may be loaded yet.
        self[method] = method
        return method


class Recording:
    """Makes one record for each release, and one for each stream.

    Args:
        telemetry: Where records go.
        ledger: Who knows how much of a budget is spent.
        alias: Hashes a unit with a key that changes with every epoch of the given length.

    Attributes:
        telemetry: The same.
        labels: What metrics call each method.
    """

    def __init__(self, telemetry: Telemetry, ledger: Ledger, alias: Callable[[bytes, float], bytes]) -> None:
        self.telemetry = telemetry
        self.labels = _Labels()
        self._ledger = ledger
        self._alias = alias

    def release(self, route: PricedPlan | None, method: str, direction: str) -> ReleaseRecord:
        """The record of one message, which begins now; without a route if the message is refused for want of one."""
        return ReleaseRecord(self, route, method, direction)

    def stream(self, method: str, direction: str) -> StreamRecord:
        """The record of one direction of a stream."""
        return StreamRecord(self, method, direction)

    def state(self, charges: Sequence[Charge]) -> str:
        """Whether one of the budgets that a release touched is low."""
        for index, account, _ in charges:
            known = self._ledger.usage(index, account)
            if known is not None and known[0] > _LOW * known[1]:
                return names.STATE_LOW
        return names.STATE_OK

    def standing(self, charges: Sequence[Charge]) -> dict[str, Any]:
        """The attributes of the budget or quota that is nearest to its end, among those that a release touched.

        Spent and cap are in the budget's own accounting: epsilon if pure, rho if zcdp.
        """
        tightest, found = -1.0, None
        for index, account, _ in charges:
            known = self._ledger.usage(index, account)
            if known is not None and known[0] > tightest * known[1]:
                tightest, found = known[0] / known[1], (index, account, known)
        if found is None:
            return {}
        index, account, (spent, cap) = found
        budget = self._ledger.budgets[index]
        attributes: dict[str, Any] = {
            names.BUDGET_NAME: budget.name,
            names.BUDGET_SPENT: spent / AMOUNT,
            names.BUDGET_CAP: cap / AMOUNT,
            names.BUDGET_STATE: names.STATE_LOW if tightest > _LOW else names.STATE_OK,
        }
        # Of a quota's account only the unit counts: the consumer is in no span, not even as a hash.
        unit = budget.unit(account)
        if unit:
            attributes[names.UNIT] = self._alias(b"dpmesh.unit\0" + unit, budget.window or _LIFETIME)[
                :8
            ].hex()
        return attributes


class ReleaseRecord:
    """What is known of one release at its beginning."""

    __slots__ = ("_direction", "_method", "_recording", "_route", "_started")

    def __init__(self, recording: Recording, route: PricedPlan | None, method: str, direction: str) -> None:
        self._recording = recording
        self._route = route
        self._method = method
        self._direction = direction
        self._started = time.time_ns()

    def settled(self, decision: str, epsilon: float, rho: float, charges: Sequence[Charge]) -> None:
        """The release was not refused."""
        self._write(decision, epsilon, rho, self._recording.standing(charges))

    def refused(self, error: BaseException) -> None:
        """The release was refused."""
        self._write(names.REFUSED, 0.0, 0.0, exhausted(error))

    def _write(self, decision: str, epsilon: float, rho: float, standing: dict[str, Any]) -> None:
        telemetry, ended = self._recording.telemetry, time.time_ns()
        mechanisms, known = _known(self._route)
        if telemetry.metering:
            budget = standing.get(names.BUDGET_NAME, "")
            seconds = (ended - self._started) * 1e-9
            method = self._recording.labels[self._method]
            telemetry.add(method, mechanisms, decision, budget, 1, epsilon, seconds)
        if telemetry.tracing:
            attributes = {
                **known,
                names.RPC_METHOD: self._method[:_NAME_KEPT],
                names.DIRECTION: self._direction,
                names.DECISION: decision,
                names.EPSILON: epsilon,
                names.RHO: rho,
                names.MESSAGES_COUNT: 1,
                **standing,
            }
            telemetry.span(attributes, self._started, ended, refused=decision == names.REFUSED)


# The attributes of a message that was refused for want of a route.
_NOTHING: Mapping[str, Any] = {}


def _known(route: PricedPlan | None) -> tuple[str, Mapping[str, Any]]:
    """What is recorded of a route: mechanisms and attributes."""
    return ("", _NOTHING) if route is None else (route.mechanisms, route.attributes)


def exhausted(error: BaseException) -> dict[str, Any]:
    """The attributes of the budget that refused, if one did."""
    if not isinstance(error, BudgetExhaustedError):
        return {}
    return {names.BUDGET_NAME: error.budget, names.BUDGET_STATE: names.STATE_EXHAUSTED}


class StreamRecord:
    """One span for all messages of one direction of a stream, opened by the first and ended by close().

    Metrics are added up and handed over about once a second: a message of a stream takes no longer than it takes to
    record one.
    """

    def __init__(self, recording: Recording, method: str, direction: str) -> None:
        self._recording = recording
        self._method = method
        self._direction = direction
        self._span: Any = None
        # Of the message's route. The route itself is not kept: that of a message with Anys holds the message.
        self._mechanisms = ""
        self._attributes = _NOTHING
        self._last = _NOTHING  # Attributes of the last message that had a route.
        self._began = False
        self._started = 0
        self._state = names.STATE_OK
        self._decision = names.REFUSED
        self._charges: Sequence[Charge] = ()
        self._refusal: dict[str, Any] = {}
        self._messages = 0
        self._epsilon = 0.0
        self._rho = 0.0
        # What no metric has counted yet: messages, their epsilon, and how many seconds the last one took; since when.
        self._uncounted = (0, 0.0, 0.0)
        self._counted = 0

    def message(self, route: PricedPlan | None) -> Self:
        """Goes on to the next message, which begins now; without a route if it is refused for want of one."""
        started = time.time_ns()
        if not self._began and self._recording.telemetry.tracing:
            self._span = self._recording.telemetry.open_span(
                {names.RPC_METHOD: self._method[:_NAME_KEPT]}, started
            )
        self._began = True
        mechanisms, attributes = _known(route)
        if attributes is not self._attributes:
            self._count()
        self._mechanisms, self._attributes = mechanisms, attributes
        self._last = attributes or self._last
        self._started = started
        return self

    def settled(self, decision: str, epsilon: float, rho: float, charges: Sequence[Charge]) -> None:
        """The message at hand was not refused."""
        if decision != self._decision or self._started > self._counted + 1e9:
            self._count()
        self._decision = decision
        self._charges = charges
        self._messages += 1
        self._epsilon += epsilon
        self._rho += rho
        count, lost, _ = self._uncounted
        self._uncounted = (count + 1, lost + epsilon, (time.time_ns() - self._started) * 1e-9)
        self._turn(self._recording.state(charges))

    def refused(self, error: BaseException) -> None:
        """The message at hand was refused."""
        self._count()
        self._decision = names.REFUSED
        self._refusal = exhausted(error)
        self._uncounted = (1, 0.0, (time.time_ns() - self._started) * 1e-9)
        self._count()
        self._turn(self._refusal.get(names.BUDGET_STATE, self._state))

    def _turn(self, state: str) -> None:
        if state != self._state:
            self._state = state
            if self._span is not None:
                self._span.add_event(names.BUDGET_EVENT, {names.BUDGET_STATE: state})

    def _standing(self) -> dict[str, Any]:
        return self._refusal or self._recording.standing(self._charges)

    def _count(self) -> None:
        """Hands over what no metric has counted yet."""
        (count, epsilon, seconds), self._uncounted = self._uncounted, (0, 0.0, 0.0)
        self._counted = self._started
        telemetry = self._recording.telemetry
        if count and telemetry.metering:
            budget = self._standing().get(names.BUDGET_NAME, "")
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
                **self._last,
                names.DIRECTION: self._direction,
                names.DECISION: self._decision,
                names.EPSILON: self._epsilon,
                names.RHO: self._rho,
                names.MESSAGES_COUNT: self._messages,
                **self._standing(),
            }
        )
        span.end()
