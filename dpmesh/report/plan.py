"""What `dpmesh plan` works out: for each message type its fields, its cost, who pays, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import AMOUNT, Accounting, rho_to_epsilon
from dpmesh.errors import AnnotationError
from dpmesh.ledger import Budget
from dpmesh.mesh.billing import BillingTable, PricedPlan
from dpmesh.policy import FieldPlan, Model, Plan, Policy


@dataclass(frozen=True, slots=True)
class FieldReport:
    """One field, oneof choice or unit.

    Attributes:
        path: From the root message.
        kind: What is done to it.
        model: "local" or "central" for what is noised, else None.
        mechanism: What draws, or None.
        origin: Who decided: "annotation", "overlay" or "unannotated".
        epsilon: The most that one message loses through it, all its elements together; for the discrete Gaussian
            at `delta`. None where nothing is noised.
        rho: The same as zCDP.
        delta: Of the discrete Gaussian, else 0.
        elements: How many values one message shows of it.
        error: A number's worst-case standard deviation, in the field's own units, for each element; None if it
            is beyond what a float holds.
        truth: The probability that a category leaves as it is.
        output: What may leave, in words.
        low: A number's smallest output.
        high: A number's largest output.
    """

    path: str
    kind: str
    model: str | None
    mechanism: str | None
    origin: str
    epsilon: float | None
    rho: float | None
    delta: float
    elements: int
    error: float | None
    truth: float | None
    output: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Payment:
    """What one budget pays for one owner's part of a message, or a quota beside it.

    Attributes:
        budget: Its name.
        under: The budget that a quota is under; "" for a budget.
        consumers: The globs of those that a quota is for; empty where it is for all.
        unit: The path of the unit whose account it is, or "" for everyone's one account.
        epsilon: The part's loss, or None when it is not pure.
        rho: The same as zCDP.
        share: The part of one window's budget that one message takes.
        messages: How many messages one window covers.
        seconds: At the rate asked for, after how long the window's budget is spent; None if it never is.
    """

    budget: str
    under: str
    consumers: tuple[str, ...]
    unit: str
    epsilon: float | None
    rho: float
    share: float
    messages: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class MessageReport:
    """One message type.

    Attributes:
        message: Its full name.
        protected: It has something to protect, whatever Anys it holds.
        refused: Why no message of this type can be released, or None.
        epsilon: The most that one message costs, each owner counted once; None when nothing is protected.
        rho: The same as zCDP.
        fields: All fields that its plan names.
        payments: Who pays.
        delta: Where the loss is not pure, the delta that `epsilon` holds at: the smallest of the budgets; else 0.
    """

    message: str
    protected: bool
    refused: str | None = None
    epsilon: float | None = None
    rho: float | None = None
    fields: tuple[FieldReport, ...] = ()
    payments: tuple[Payment, ...] = ()
    delta: float = 0.0

    @property
    def tightest(self) -> Payment | None:
        """Of those who pay whoever the consumer is, who is spent first; None if nobody ever is."""
        return _first(entry for entry in self.payments if not entry.consumers)

    @property
    def tightest_for_some(self) -> Payment | None:
        """The quota that is spent first where it fits the consumer, if that is before the others are; else None."""
        first, usual = _first(entry for entry in self.payments if entry.consumers), self.tightest
        if first is None or usual is None:
            return first
        return first if (first.seconds or 0.0) < (usual.seconds or 0.0) else None


def _first(payments: Iterable[Payment]) -> Payment | None:
    """Who is spent first."""
    spent = [entry for entry in payments if entry.seconds is not None]
    return min(spent, key=lambda entry: entry.seconds or 0.0, default=None)


class Planner:
    """Reports on message types under one policy and one set of budgets.

    Args:
        policy: The rules.
        budgets: What pays, quotas included.
        rate: Messages per second, of one unit or in all, depending on the budget's key; for a quota, to one consumer.
    """

    def __init__(self, policy: Policy, budgets: Sequence[Budget], rate: float) -> None:
        self._policy = policy
        self._budgets = budgets
        self._routes = BillingTable(policy, budgets)
        self._rate = rate

    def report(self, message: Descriptor, method: str = "", direction: str = "request") -> MessageReport:
        """Everything about one message type.

        Args:
            message: The type.
            method: The RPC that carries it, "/package.Service/Method", for budgets that tell RPCs apart.
            direction: "request" or "response".
        """
        try:
            plan = self._policy.plan(message)
        except AnnotationError as error:
            return MessageReport(message.full_name, protected=True, refused=str(error))
        if plan is None:
            return MessageReport(message.full_name, protected=False)
        fields = tuple(_field(entry) for entry in plan.fields)
        if plan.is_open:
            return MessageReport(message.full_name, protected=False, fields=fields)
        try:
            route = self._routes.of(GetMessageClass(message), method, direction)
        except AnnotationError as error:
            return MessageReport(message.full_name, True, str(error), *_total(plan, None), fields)
        assert route is not None
        payments = tuple(self._payments(plan, route))
        return MessageReport(
            message.full_name, True, None, *_total(plan, route), fields, payments, self._delta(plan)
        )

    def _delta(self, plan: Plan) -> float:
        if all(scope.cost.epsilon is not None for scope in plan.scopes):
            return 0.0
        return min(budget.delta for budget in self._budgets if budget.accounting is Accounting.ZCDP)

    def _payments(self, plan: Plan, route: PricedPlan) -> list[Payment]:
        found = []
        for scope, amounts, quotas in zip(plan.scopes, route.amounts, route.quotas, strict=True):
            for index, amount in (*amounts, *quotas):
                if not amount:
                    continue
                budget = self._budgets[index]
                messages = budget.cap // amount
                seconds: float | None = messages / self._rate
                if budget.window is not None and messages / self._rate >= budget.window:
                    seconds = None
                epsilon = None if scope.cost.epsilon is None else scope.cost.epsilon / AMOUNT
                found.append(
                    Payment(
                        budget=budget.name,
                        under=budget.under,
                        consumers=budget.consumers,
                        unit=scope.path,
                        epsilon=epsilon,
                        rho=scope.cost.rho / AMOUNT,
                        share=amount / budget.cap,
                        messages=messages,
                        seconds=seconds,
                    )
                )
        return found


def _field(entry: FieldPlan) -> FieldReport:
    shown = entry.kind.describe(entry)
    epsilon, rho = _loss(entry)
    return FieldReport(
        path=entry.path,
        kind=str(entry.kind),
        model=None if entry.model is None else str(entry.model),
        mechanism=entry.mechanism_name or None,
        origin=entry.origin,
        epsilon=epsilon,
        rho=rho,
        delta=entry.delta,
        elements=entry.repeats * entry.instances,
        error=shown.error,
        truth=shown.truth,
        output=shown.output,
        low=shown.low,
        high=shown.high,
    )


def _total(plan: Plan, route: PricedPlan | None) -> tuple[float | None, float]:
    if route is not None:
        return sum(epsilon for epsilon, _ in route.losses), sum(rho for _, rho in route.losses)
    return None if plan.cost.epsilon is None else plan.cost.epsilon / AMOUNT, plan.cost.rho / AMOUNT


def _loss(entry: FieldPlan) -> tuple[float | None, float | None]:
    if not entry.mechanism_name:
        return None, None
    cost = entry.cost.times(entry.instances)
    if cost.epsilon is None:
        return rho_to_epsilon(cost.rho / AMOUNT, entry.delta), cost.rho / AMOUNT
    return cost.epsilon / AMOUNT, cost.rho / AMOUNT


def is_central(field: FieldReport) -> bool:
    """Whether a field is an aggregate over many units."""
    return field.model == str(Model.CENTRAL)
