"""Swapping: what a new policy has to pass before it replaces the one in force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from google.protobuf.message_factory import GetMessageClass

from dpmesh import config as configuration
from dpmesh import method_name
from dpmesh.accounting import Cost
from dpmesh.config import Config
from dpmesh.errors import AnnotationError, ConfigError
from dpmesh.ledger import Budget
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.policy import FieldPlan, Plan, Policy, loaded_types
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.kinds.category import CategoricalPayload
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.kinds.numeric import NumericPayload
from dpmesh.policy.kinds.vector_mechanism import VectorMechanism
from dpmesh.rollout.file_source import is_older
from dpmesh.v1 import policy_pb2


@dataclass(frozen=True, slots=True)
class LocalTerms:
    """What holds in this process where a policy says nothing of it.

    Attributes:
        budgets: Budgets and quotas.
        mode: "enforce" or "observe".
        settings: What dpmesh.toml and the environment say, if the mesh was made of that. They win over `budgets`
            and `mode`.
    """

    budgets: Sequence[Budget]
    mode: str
    settings: Config | None = None

    def under(self, document: policy_pb2.Policy) -> tuple[Sequence[Budget], str]:
        """The budgets, with quotas, and the mode under a policy.

        Raises:
            ConfigError: One of them is wrong.
        """
        settings = configuration.with_policy(self.settings or Config(), document)
        own = self.settings is None
        budgets = self.budgets if own and not document.budgets else configuration.budgets(settings)
        return budgets, self.mode if own and not document.mode else settings.mode


def prepare(
    policy: Policy | policy_pb2.Policy | str | Path,
    local: LocalTerms,
    places: Callable[[Sequence[Budget]], tuple[int, ...]],
    before: PolicySnapshot,
) -> PolicySnapshot:
    """Compiles and checks a policy that shall replace the snapshot in force.

    Args:
        policy: The rules.
        local: What holds where the policy says nothing of it.
        places: As of Ledger.places.
        before: The snapshot in force.

    Returns:
        The snapshot, which can be used at once: everything that is loaded or was released before is compiled.

    Raises:
        AnnotationError: An annotation or overlay is bad, a mechanism fails its self-test, or no budget covers messages
            that a budget covers now.
        ConfigError: The policy can't be read, or names something that no loaded proto has; one of its budgets or quotas
            is wrong, or its mode is observe where it was enforce.
    """
    if policy is None:  # To Policy, it means no overlays.
        raise ConfigError("policy: None is no policy; allowed: Policy() for annotations alone")
    rules = policy if isinstance(policy, Policy) else Policy(policy)
    _refuse_older(rules.document, before.policy.document)
    budgets, mode = local.under(rules.document)
    if (before.mode, mode) == ("enforce", "observe"):
        raise ConfigError(
            "policy: mode: a swap can't change it from enforce to observe, in which messages leave unprotected; start "
            "anew with it"
        )
    snapshot = PolicySnapshot(rules, dict(zip(places(budgets), budgets, strict=True)), mode)
    plans = [*snapshot.compile_loaded(), *_prices(snapshot, before)]
    for plan in {plan.version: plan for plan in plans}.values():
        self_test(plan)
    snapshot.has_rules()  # Looks through all loaded types once, which the event loop need not wait for.
    return snapshot


def _refuse_older(document: policy_pb2.Policy, before: policy_pb2.Policy) -> None:
    """Refuses a policy that was published before the one in force, or beside it under one epoch.

    Raises:
        ConfigError: It was.
    """
    if is_older(document, before):
        raise ConfigError(
            f"policy: epoch: {document.epoch} is not larger than {before.epoch}, which is in force; "
            "publish it under a new epoch, older rules too"
        )


def _prices(snapshot: PolicySnapshot, before: PolicySnapshot) -> Iterator[Plan]:
    """The plans of all messages that were released or may be: what could leave before the swap can leave after it."""
    for sent in {*before.billing.priced_so_far(), *_declared()}:
        try:
            priced = snapshot.billing.price(*sent)
        except AnnotationError:
            if _could_leave(before, *sent):
                raise
        else:
            if priced is not None:
                yield priced.plan


def _declared() -> Iterator[tuple[type, str, str]]:
    """The messages that loaded methods declare: class, method and direction."""
    for method in loaded_types.methods():
        name = method_name.name_of(method)
        yield GetMessageClass(method.input_type), name, "request"
        yield GetMessageClass(method.output_type), name, "response"


def _could_leave(snapshot: PolicySnapshot, message_type: type, method: str, direction: str) -> bool:
    try:
        snapshot.billing.price(message_type, method, direction)
    except AnnotationError:
        return False
    return True


def self_test(plan: Plan) -> None:
    """Draws from each of a plan's mechanisms at the edges of its inputs, and adds up again what the plan costs.

    Raises:
        AnnotationError: A mechanism draws what it can't, or a cost does not cover what is drawn.
    """
    if plan.cost != sum((scope.cost for scope in plan.scopes), Cost.ZERO):
        raise _failed(plan.descriptor.full_name, "costs something else than its scopes together")
    total = plan.cost if plan.memos is None else plan.cost + plan.memos.cost
    for field in plan.fields:
        reading = field.kind.reading(field)
        if isinstance(reading, VectorMechanism):
            _test_vector(plan, field, reading)
            continue
        if isinstance(reading, (NumericPayload, HistogramPayload)):
            number = reading.number if isinstance(reading, HistogramPayload) else reading
            draws, last = number.mechanism.draws, number.grid.size
            allows = range(number.mechanism.low, number.mechanism.high + 1).__contains__
            # Of a kind that is not elementwise, one draw's epsilon may be that of all elements together.
            draws_paid = field.repeats if field.kind.elementwise else 1
            drawn = _cost(number.mechanism.epsilon, number.mechanism.rho, draws_paid)
        elif isinstance(reading, CategoricalPayload):
            draws, last = reading.mechanism.draws, reading.mechanism.k - 1
            allows = reading.mechanism.allows
            drawn = _cost(reading.mechanism.epsilon, None, field.repeats)
        else:
            continue
        if not _is_covered(drawn, field.cost) or not _is_covered(field.cost, total):
            raise _failed(field.name, "draws more than it pays for")
        draw = draw_function(draws)
        if not all(allows(draw(index)) for index in (0, last // 2, last)):
            raise _failed(field.name, "draws a value outside of its mechanism's range")


def _test_vector(plan: Plan, field: FieldPlan, vector: VectorMechanism) -> None:
    """Draws from a mechanism for vectors at 0 and far beyond its norm; otherwise as `self_test`."""
    if not _is_covered(_cost(vector.epsilon, vector.rho, 1), field.cost) or not _is_covered(
        field.cost, plan.cost
    ):
        raise _failed(field.name, "draws more than it pays for")
    for edge in (0.0, vector.reach):
        left = vector.release([edge] * vector.dimension)
        if not (len(left) == vector.dimension and all(abs(each) <= vector.reach for each in left)):
            raise _failed(field.name, "draws a value outside of its mechanism's range")


def _cost(epsilon: Fraction | None, rho: Fraction | None, repeats: int) -> Cost:
    """What all draws for one field of one message cost, by the mechanism's own parameters."""
    if epsilon is not None:
        return Cost.pure(epsilon).times(repeats)
    assert rho is not None
    return Cost.gaussian(rho * repeats)


def _is_covered(part: Cost, whole: Cost) -> bool:
    if whole.epsilon is not None and (part.epsilon is None or part.epsilon > whole.epsilon):
        return False
    return part.rho <= whole.rho


def _failed(element: str, text: str) -> AnnotationError:
    return AnnotationError(
        "self-test", element, f"{text}; the policy was not taken", "report this as a bug of dpmesh"
    )
