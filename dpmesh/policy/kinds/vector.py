"""Vector: a repeated float or double that is one value, released with noise for all of its coordinates together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from numpy.typing import NDArray
from typing_extensions import override

from dpmesh.accounting import Cost
from dpmesh.errors import ProtectionError
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.descriptors import FLOAT_LIMITS, F, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds import vector_mechanism
from dpmesh.policy.kinds.checks import above_zero
from dpmesh.policy.kinds.kind import ITEMS_LIMIT, Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, gaussian_rho, refuse_delta, split
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.kinds.vector_mechanism import Room, VectorMechanism
from dpmesh.policy.kinds.words import number
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.policy.sizes import Size
from dpmesh.v1 import privacy_pb2 as pb

Array = NDArray[np.float64]

_AGGREGATES = (pb.Vector.DISCRETE_GAUSSIAN, pb.Vector.DISCRETE_LAPLACE)
# Of float and double: binary digits of their whole numbers, and the smallest number that has all of these digits.
_DIGITS = {F.TYPE_FLOAT: (24, 2.0**-126), F.TYPE_DOUBLE: (52, 2.0**-1022)}
# `dpmesh plan` says how many reports are needed for a mean that is off by at most this part of the norm.
_NEAR = 0.1


class Vector(NoisedKind):
    """Scales down to the declared norm, and draws all coordinates together."""

    name = "vector"
    elementwise = False
    absent = ()

    @override
    def plan(self, site: FieldSite, rules: pb.Vector) -> FieldPlan:
        room, bound = _room(site.field, rules), _bound(rules)
        _check_length(site, rules)
        epsilon = split(field_epsilon(rules, site.share), 1)
        central = rules.HasField("sensitivity")
        if central:
            mechanism = _aggregate(rules, bound, epsilon, room)
        else:
            mechanism = _local(rules, bound, epsilon, room)
        rho = mechanism.rho
        return self.noised_plan(
            site,
            model=Model.CENTRAL if central else Model.LOCAL,
            epsilon=epsilon if rho is None else None,
            rho=rho,
            delta=rules.delta if rho is not None else 0.0,
            repeats=rules.dimension,
            cost=Cost.pure(epsilon) if rho is None else Cost.gaussian(rho),
            mechanism_name=mechanism.name,
            payload=mechanism,
        )

    @override
    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        name, release = site.field.name, plan.payload.release
        read = _aggregate_reader(plan) if plan.model is Model.CENTRAL else _local_reader(plan)

        def vector(source: Any, target: Any, _pseudonymise: Any) -> None:
            getattr(target, name).extend(release(read(getattr(source, name))))

        return vector

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        return self.size_with(site, plan, [0.0])

    @override
    def describe(self, plan: FieldPlan) -> Description:
        mechanism: VectorMechanism = plan.payload
        reach, length = mechanism.reach, math.sqrt(mechanism.worst_error)
        words = f"{mechanism.dimension} coordinates from {number(-reach)} to {number(reach)}; L2 error {number(length)}"
        if mechanism.relative_error is not None:
            reports = math.ceil(mechanism.relative_error / _NEAR**2)
            words += f"; {number(reports)} reports for a mean within {_NEAR:.0%} of the norm"
        return Description(words, error=math.sqrt(mechanism.worst_variance), low=-reach, high=reach)

    @override
    def refuses(self, plan: FieldPlan) -> tuple[str, str] | None:
        if plan.model is Model.LOCAL:
            return None
        return "NaN and other lengths", "nothing: an aggregate's sensitivity does not cover them"

    @override
    def received(self, value: Any) -> Iterable[Any]:
        return (value,) if len(value) else ()


KIND = Vector()


def _room(field: FieldDescriptor, rules: pb.Vector) -> Room:
    if not field.is_repeated or field.type not in _DIGITS:
        raise BadRuleError(
            "kind-type", f"vector does not fit {type_name(field)}", "use it on a repeated float or double"
        )
    step = None
    if rules.HasField("resolution"):
        step = vector_mechanism.power_below(above_zero(rules.resolution, "resolution", fix="leave it out"))
    digits, smallest = _DIGITS[field.type]
    return Room(digits, FLOAT_LIMITS[field.type], smallest, step)


def _bound(rules: pb.Vector) -> float:
    """The declared norm."""
    norm = rules.WhichOneof("norm")
    if norm is None:
        raise BadRuleError(
            "bounds", "has no norm", "set l2_norm, linf_norm or l1_norm: the largest that vectors have"
        )
    return above_zero(getattr(rules, norm), "bounds", name=norm)


def _check_length(site: FieldSite, rules: pb.Vector) -> None:
    if not 1 <= rules.dimension <= ITEMS_LIMIT:
        raise BadRuleError(
            "dimension",
            f"the length of a vector is public, and must be between 1 and {ITEMS_LIMIT}",
            "set dimension",
        )
    if site.max_items not in (0, rules.dimension):
        raise BadRuleError("max-items", "the length of a vector is its dimension", "remove max_items")


def _local(rules: pb.Vector, bound: float, epsilon: Fraction, room: Room) -> VectorMechanism:
    """The mechanism for a unit's own vector."""
    norm, chosen, dimension = rules.WhichOneof("norm"), rules.mechanism, rules.dimension
    if norm == "l1_norm":
        raise BadRuleError(
            "norm",
            "l1_norm is for aggregates, and this vector is the unit's own",
            "use l2_norm: it is at most the l1_norm",
        )
    if chosen in _AGGREGATES:
        raise BadRuleError(
            "mechanism",
            "this mechanism is for aggregates, and this vector is the unit's own",
            "use PRIV_UNIT_G, or set sensitivity",
        )
    if rules.HasField("delta"):
        raise BadRuleError("delta", "only the discrete Gaussian uses delta", "remove it, or set sensitivity")
    if chosen == pb.Vector.COORDINATE_SAMPLING and norm != "linf_norm":
        raise BadRuleError(
            "mechanism", "COORDINATE_SAMPLING needs linf_norm", "use PRIV_UNIT_G, or set linf_norm"
        )
    made: list[Callable[[], VectorMechanism]] = []
    if chosen in (pb.Vector.AUTO, pb.Vector.PRIV_UNIT_G):
        radius, cube = (bound * math.sqrt(dimension), True) if norm == "linf_norm" else (bound, False)
        made.append(lambda: vector_mechanism.directions(dimension, radius, cube, epsilon, room))
    if norm == "linf_norm" and chosen in (pb.Vector.AUTO, pb.Vector.COORDINATE_SAMPLING):
        made.append(lambda: vector_mechanism.coordinates(dimension, bound, epsilon, room))
    return min((make() for make in made), key=lambda mechanism: mechanism.worst_error)


def _aggregate(rules: pb.Vector, bound: float, epsilon: Fraction, room: Room) -> VectorMechanism:
    """The mechanism for an aggregate."""
    sensitivity, chosen = above_zero(rules.sensitivity, "sensitivity"), rules.mechanism
    if chosen in (pb.Vector.PRIV_UNIT_G, pb.Vector.COORDINATE_SAMPLING):
        raise BadRuleError(
            "mechanism",
            "this mechanism is for a unit's own vector, and sensitivity says that this is an aggregate",
            "use DISCRETE_GAUSSIAN or DISCRETE_LAPLACE",
        )
    gaussian = chosen == pb.Vector.DISCRETE_GAUSSIAN or (chosen == pb.Vector.AUTO and rules.HasField("delta"))
    norm, dimension = rules.WhichOneof("norm"), rules.dimension
    if gaussian:
        rho = gaussian_rho(epsilon, rules)
        grown = dimension**0.5 if norm == "linf_norm" else 1.0
        return vector_mechanism.noised(
            dimension, bound, _times(sensitivity, grown), NumericKind.DISCRETE_GAUSSIAN, (epsilon, rho), room
        )
    refuse_delta(rules)
    grown = {"l1_norm": 1.0, "l2_norm": dimension**0.5, "linf_norm": float(dimension)}[str(norm)]
    return vector_mechanism.noised(
        dimension, bound, _times(sensitivity, grown), NumericKind.DISCRETE_LAPLACE, (epsilon, None), room
    )


def _times(sensitivity: float, grown: float) -> float:
    """The sensitivity in another norm, rounded up."""
    if grown == 1:
        return sensitivity
    return math.nextafter(sensitivity * math.nextafter(grown, math.inf), math.inf)


def _local_reader(plan: FieldPlan) -> Callable[[Any], list[float]]:
    """Reads a unit's own vector: the zero vector stands for one of another length, or with NaN or infinity in it."""
    dimension = plan.payload.dimension

    def read(values: Any) -> list[float]:
        if len(values) == dimension:
            numbers: list[float] = values[:]
            # Numbers that are finite may have an infinite length.
            if math.isfinite(math.hypot(*numbers)) or all(map(math.isfinite, numbers)):
                return numbers
        return [0.0] * dimension

    return read


def _aggregate_reader(plan: FieldPlan) -> Callable[[Any], list[float]]:
    """Reads an aggregate. Its sensitivity does not cover the jump to another vector, so what is none is refused."""
    dimension, name = plan.payload.dimension, plan.name

    def read(values: Any) -> list[float]:
        if len(values) != dimension:
            text = f"has not {dimension} elements, and is an aggregate: fill it up"
            raise ProtectionError("MISSING_AGGREGATE", name, text)
        held: list[float] = values[:]
        if any(map(math.isnan, held)):
            raise ProtectionError("NOT_A_NUMBER", name, "holds a NaN, which is refused")
        return held

    return read
