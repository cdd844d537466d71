"""What one message type promises: its fields and their error, its privacy loss, which budgets pay, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import AnnotationError
from dpmesh.ledger import Budget
from dpmesh.mesh.billing import BillingTable
from dpmesh.mesh.pricing import PricedPlan
from dpmesh.policy import FieldPlan, Plan, Policy
from dpmesh.policy.kinds.words import duration, number
from dpmesh.policy.sizes import Size


@dataclass(frozen=True, slots=True)
class FieldReport:
    """One field, oneof choice or unit.

    Attributes:
        path: From the root message.
        kind: What is done to it.
        model: "local" or "central" for what is noised, else None.
        mechanism: What draws, or None.
        origin: Who decided: "annotation", "overlay", "overlay by path" or "unannotated".
        epsilon: The most that one message loses through it, all its elements together; for the discrete Gaussian
            and for histograms without public keys at `delta`. Of a memoized field, what one
            unit loses in one epoch. None where nothing is noised.
        rho: This loss as zCDP counts it.
        delta: The delta of the discrete Gaussian or of a histogram without public keys, else 0.
        elements: How many values of it one message shows.
        error: A number's worst-case standard deviation per element, in the field's own units; None if a float
            can't hold it.
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
    """What one budget or quota pays for one account's part of a message.

    Attributes:
        budget: Its name.
        under: The budget that a quota is under; "" for a budget.
        consumers: The globs of the consumers that a quota is for; empty if it is for all.
        unit: The path of the unit whose account pays; "" for the one account of all aggregates.
        epsilon: The part's loss, or None if it is not pure.
        rho: This loss as zCDP counts it.
        share: The fraction of one window's budget that one message takes.
        messages: How many messages one window covers.
        seconds: How long one window lasts at the planner's rate, or at one message each slot; None if the window renews
            before it is spent.
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
class MemoizedReport:
    """What a unit pays for all memoized answers in its first message of an epoch.

    Attributes:
        seconds: How long an epoch lasts.
        epsilon: The loss.
        rho: This loss as zCDP counts it.
        shares: The fraction of one window that this takes of each budget and quota that pays, by name.
    """

    seconds: float
    epsilon: float
    rho: float
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class MessageReport:
    """One message type.

    Attributes:
        message: Its full name.
        protected: Whether it protects something itself, apart from what its Anys pack.
        refused: Why no message of this type can be released, or None.
        epsilon: The most that one message loses, each unit counted once; None when nothing is protected.
        rho: This loss as zCDP counts it.
        fields: All fields that its plan names.
        payments: Which budgets and quotas pay.
        delta: The delta that `epsilon` holds at: 0 if the loss is pure, else the smallest delta of the budgets, and
            what histograms without public keys add.
        pad_to: The sizes in bytes, one of which each message has; empty where it is as long as it is.
        size: How many bytes a message takes before padding, where a budget has paid; None when nothing is protected.
        memoized: What its memoized fields cost, beside `epsilon`; None without such fields.
        digest: Of all that decides the law of what leaves: what senders name on methods with `require_policy`. "" when
            nothing is protected.
    """

    message: str
    protected: bool
    refused: str | None = None
    epsilon: float | None = None
    rho: float | None = None
    fields: tuple[FieldReport, ...] = ()
    payments: tuple[Payment, ...] = ()
    delta: float = 0.0
    pad_to: tuple[int, ...] = ()
    memoized: MemoizedReport | None = None
    size: Size | None = None
    digest: str = ""

    @property
    def tightest(self) -> Payment | None:
        """The payment that runs out first for every consumer; None if none ever does."""
        return _first(entry for entry in self.payments if not entry.consumers)

    @property
    def tightest_for_some(self) -> Payment | None:
        """The quota for some consumers that runs out before `tightest` does, if there is one."""
        first, usual = _first(entry for entry in self.payments if entry.consumers), self.tightest
        if first is None or usual is None:
            return first
        return first if (first.seconds or 0.0) < (usual.seconds or 0.0) else None


def _first(payments: Iterable[Payment]) -> Payment | None:
    spent = [entry for entry in payments if entry.seconds is not None]
    return min(spent, key=lambda entry: entry.seconds or 0.0, default=None)


class Planner:
    """Reports on message types under one policy and one set of budgets.

    Args:
        policy: The rules.
        budgets: What pays, quotas included.
        rate: Messages per second: of one unit for a budget of key "unit", of all for one of key "global", to one
            consumer for a quota.
    """

    def __init__(self, policy: Policy, budgets: Sequence[Budget], rate: float) -> None:
        self._policy = policy
        self._budgets = budgets
        self._billing = BillingTable(policy, budgets)
        self._rate = rate

    def source(self, message: Descriptor) -> str:
        """The generated code that protects one message type; "" where there is none."""
        try:
            plan = self._policy.plan(message)
        except AnnotationError:
            return ""
        return "" if plan is None else plan.source

    def is_trust_boundary(self, method: MethodDescriptor) -> bool:
        """Whether no trace goes on over a method's requests; False where its rules are bad, which others report."""
        try:
            return self._policy.is_trust_boundary(method)
        except AnnotationError:
            return False

    def send_slot(self, method: MethodDescriptor) -> float | None:
        """The seconds between two slots; None where there are none, or rules are bad, which others report."""
        try:
            return self._policy.send_slot(method)
        except AnnotationError:
            return None

    def report(
        self, message: Descriptor, method: str = "", direction: str = "request", slot: float | None = None
    ) -> MessageReport:
        """Everything about one message type.

        Args:
            message: The type.
            method: The RPC that carries it, "/package.Service/Method", for budgets that choose by method.
            direction: "request" or "response".
            slot: The seconds between two slots, in which alone the RPC's messages leave: they give the rate.
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
            priced = self._billing.price(GetMessageClass(message), method, direction)
        except AnnotationError as error:
            total = _total(plan, None)
            return MessageReport(message.full_name, True, str(error), *total, fields, digest=plan.version)
        assert priced is not None
        payments = tuple(self._payments(plan, priced, self._rate if slot is None else 1 / slot))
        return MessageReport(
            message.full_name,
            True,
            None,
            *_total(plan, priced),
            fields,
            payments,
            self._delta(plan),
            plan.pad_to,
            self._memoized(priced),
            plan.size,
            plan.version,
        )

    def _memoized(self, priced: PricedPlan) -> MemoizedReport | None:
        priced_memos = priced.memos
        if priced_memos is None:
            return None
        paying = [(self._budgets[index], n) for index, n in (*priced_memos.amounts, *priced_memos.quotas)]
        shares = {budget.name: amount / budget.cap for budget, amount in paying}
        return MemoizedReport(priced_memos.memos.epoch, *priced_memos.loss, shares)

    def _delta(self, plan: Plan) -> float:
        if all(scope.cost.epsilon is not None for scope in plan.scopes):
            return 0.0
        smallest = min(budget.delta for budget in self._budgets if budget.accounting is Accounting.ZCDP)
        return smallest + float(plan.cost.delta)

    def _payments(self, plan: Plan, priced: PricedPlan, rate: float) -> list[Payment]:
        payments = []
        for scope, amounts, quotas in zip(plan.scopes, priced.amounts, priced.quotas, strict=True):
            for index, amount in (*amounts, *quotas):
                if not amount:
                    continue
                budget = self._budgets[index]
                epsilon = None if scope.cost.epsilon is None else scope.cost.epsilon / AMOUNT
                messages = budget.cap // amount
                seconds = messages / rate
                renews = budget.window is not None and seconds >= budget.window
                payments.append(
                    Payment(
                        budget=budget.name,
                        under=budget.under,
                        consumers=budget.consumers,
                        unit=scope.path,
                        epsilon=epsilon,
                        rho=scope.cost.rho / AMOUNT,
                        share=amount / budget.cap,
                        messages=messages,
                        seconds=None if renews else seconds,
                    )
                )
        return payments


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
        output=shown.output + _lengths(entry) + _memoized(entry),
        low=shown.low,
        high=shown.high,
    )


def _lengths(entry: FieldPlan) -> str:
    """Which numbers of elements leave as they are, in words: the field's own, and those of messages around it."""
    if not entry.mechanism_name:
        return ""
    names = ["elements" if path == entry.path else path for path in entry.public_lengths]
    return "".join(f"; the number of {name} as it is" for name in names)


def _memoized(entry: FieldPlan) -> str:
    """What is memoized of a field, in words."""
    if entry.memo is None:
        return ""
    each = (entry.cost.epsilon or 0) / entry.memo.states / AMOUNT
    answers = f"{entry.memo.states} states, {number(each)} each"
    return f"; memoized for {duration(entry.memo.epoch)} ({answers}), and shows when it changes"


def _total(plan: Plan, priced: PricedPlan | None) -> tuple[float | None, float]:
    if priced is not None:
        return sum(epsilon for epsilon, _ in priced.losses), sum(rho for _, rho in priced.losses)
    return None if plan.cost.epsilon is None else plan.cost.epsilon / AMOUNT, plan.cost.rho / AMOUNT


def _loss(entry: FieldPlan) -> tuple[float | None, float | None]:
    if not entry.mechanism_name:
        return None, None
    cost = entry.cost.times(entry.instances)
    if cost.epsilon is None:
        return cost.epsilon_at(entry.delta), cost.rho / AMOUNT
    return cost.epsilon / AMOUNT, cost.rho / AMOUNT
