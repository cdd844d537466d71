"""Time: a point or a length of time, as a whole number of steps between public bounds, released as a number is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from typing_extensions import override

from dpmesh.accounting import Cost
from dpmesh.noise import numeric, numeric_choice
from dpmesh.noise.numeric import NumericMechanism
from dpmesh.policy.codegen.steps import Step, Transform
from dpmesh.policy.descriptors import INTEGER_RANGES, inside_of, scalar, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.grid import GRID_LIMIT, Grid, outputs_fit
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, split
from dpmesh.policy.kinds.numeric import Numeric, NumericPayload
from dpmesh.policy.kinds.words import number
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.policy.sizes import Size, nested, of_values, shortest_and_longest
from dpmesh.v1 import privacy_pb2 as pb

# All times and lengths below are integers of nanoseconds, unless a name says otherwise.
_SECOND = 10**9
_STEPS = {
    pb.Time.NANOSECOND: 1,
    pb.Time.MICROSECOND: 10**3,
    pb.Time.MILLISECOND: 10**6,
    pb.Time.SECOND: _SECOND,
    pb.Time.MINUTE: 60 * _SECOND,
    pb.Time.HOUR: 3_600 * _SECOND,
    pb.Time.DAY: 86_400 * _SECOND,
}
_SYMBOLS = dict(zip(_STEPS.values(), ("ns", "µs", "ms", "s", "min", "h", "d"), strict=True))
_TIMESTAMP, _DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"
# What the two types can hold, by their definitions: years 1 to 9999, and 10,000 years either way.
_LIMITS = {
    _TIMESTAMP: (-62_135_596_800 * _SECOND, 253_402_300_800 * _SECOND - 1),
    _DURATION: (-315_576_000_000 * _SECOND, 315_576_000_000 * _SECOND),
}
# By default the range of a Timestamp or Duration has at least so many steps.
_CELLS = 10_000


@dataclass(frozen=True, slots=True)
class TimePayload:
    """What leaves of a time, and how it is drawn.

    Attributes:
        number: The time as estimators read it: in seconds, or in the steps of an integer field.
        ticks: The time as it is computed: in whole nanoseconds, or in the steps of an integer field.
        unit: How many nanoseconds one tick is.
        message: The full name of the message type, or "" for an integer.
        dated: It is a point in time, so that the bounds are dates.
        shift: The largest shift that is hidden, or None where the whole range is.
    """

    number: NumericPayload
    ticks: NumericPayload
    unit: int
    message: str
    dated: bool
    shift: int | None

    def words(self, tick: int) -> str:
        """A time, as people write it."""
        if not self.dated:
            if not self.message:
                return f"{number(tick)} {_SYMBOLS[self.unit]}"
            return f"{number(tick * self.unit / _SECOND)} s"
        low, high = _LIMITS[_TIMESTAMP]
        at = Timestamp()
        at.FromNanoseconds(min(max(tick * self.unit, low), high))
        return at.ToJsonString()


class Time(Numeric):
    """Clamps to the bounds, rounds to the resolution in integers, and draws as `Numeric` does."""

    name = "time"

    @override
    def plan(self, site: FieldSite, rules: Any) -> FieldPlan:
        holder = scalar(site.field)
        message = "" if holder.message_type is None else holder.message_type.full_name
        unit = _unit(site.field, holder, message, rules)
        repeats = site.repeats()
        earliest, latest, dated = _bounds(message, rules)
        limits = _LIMITS[message] if message else INTEGER_RANGES[holder.type]
        if earliest // unit < limits[0] or latest // unit > limits[1]:
            raise BadRuleError("bounds", f"earliest and latest must fit {type_name(site.field)}")
        grid = _grid(earliest, latest, _resolution(latest - earliest, unit, message, rules), unit)
        shift = _shift(site, rules)
        sensitivity = grid.size if shift is None else min(-(-shift // int(grid.step * unit)), grid.size)
        epsilon = field_epsilon(rules, site.share)
        each = split(epsilon, repeats)
        mechanism, in_range = _mechanism(grid, sensitivity, each, limits)
        ticks = NumericPayload(grid, mechanism, in_range)
        return self.noised_plan(
            site,
            model=Model.LOCAL,
            epsilon=epsilon,
            repeats=repeats,
            cost=Cost.pure(each).times(repeats),
            mechanism_name=str(mechanism.kind),
            payload=TimePayload(_in_seconds(ticks) if message else ticks, ticks, unit, message, dated, shift),
        )

    @override
    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        if not plan.payload.message:
            return super().step(site, plan)
        return _messages(site.field, self.transform(plan), plan)

    @override
    def transform(self, plan: FieldPlan) -> Transform:
        return super().transform(replace(plan, payload=plan.payload.ticks))

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        ticks: NumericPayload = plan.payload.ticks
        if not plan.payload.message:
            return super().size(site, replace(plan, payload=ticks))
        holder = inside_of(site.field)
        assert holder is not None
        low, high = (int(end) for end in ticks.outputs)
        seconds = holder.fields_by_name["seconds"]
        inner = of_values(seconds, shortest_and_longest(seconds, low // _SECOND, -(-high // _SECOND)))
        if low % _SECOND or int(ticks.grid.step) % _SECOND:
            # Of a Duration below 0, they are below 0 too.
            least = 1 - _SECOND if plan.payload.message == _DURATION and low < 0 else 0
            nanos = holder.fields_by_name["nanos"]
            inner += of_values(nanos, shortest_and_longest(nanos, least, _SECOND - 1))
        return nested(site.field, inner, plan.repeats, plan.repeats)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        time: TimePayload = plan.payload
        shown = super().describe(replace(plan, payload=time.number))
        low, high = time.ticks.outputs
        words = f"{time.words(int(low))} to {time.words(int(high))}"
        if time.dated and not time.message:
            words += f", error in {_SYMBOLS[time.unit]}"
        if time.shift is not None:
            words += f", hides shifts up to {number(time.shift / _SECOND)} s only"
        return replace(shown, output=words)

    @override
    def hides_near_values_only(self, plan: FieldPlan) -> bool:
        time: TimePayload = plan.payload
        grid = time.ticks.grid
        return time.shift is not None and time.shift < grid.size * grid.step * time.unit

    @override
    def refuses(self, plan: FieldPlan) -> None:
        return None

    @override
    def states(self, plan: FieldPlan) -> None:
        return None

    @override
    def reading(self, plan: FieldPlan) -> NumericPayload:
        payload: NumericPayload = plan.payload.number
        return payload

    @override
    def received(self, value: Any) -> Iterable[Any]:
        # Not by class: a receiver may have the type from another descriptor pool.
        return (value,) if isinstance(value, int) else (value.seconds + value.nanos / _SECOND,)


KIND = Time()


def _unit(field: FieldDescriptor, holder: FieldDescriptor, message: str, rules: pb.Time) -> int:
    """How many nanoseconds one tick is."""
    if message in _LIMITS:
        if rules.step:
            raise BadRuleError("step", f"is for integers, and {type_name(field)} brings its own", "remove it")
        return 1
    if holder.type not in INTEGER_RANGES:
        fix = "use it on Timestamp, Duration or integers; numeric fits a float"
        raise BadRuleError("kind-type", f"time does not fit {type_name(field)}", fix)
    if rules.step not in _STEPS:
        raise BadRuleError("step", "of an integer must say what 1 means", "SECOND, for example")
    return _STEPS[rules.step]


def _bounds(message: str, rules: pb.Time) -> tuple[int, int, bool]:
    """The earliest and the latest time, and whether they are dates."""
    if not (rules.earliest and rules.latest):
        raise BadRuleError("bounds", "has no earliest and latest", "set the range that values can take")
    kinds = {_TIMESTAMP: [True], _DURATION: [False]}.get(message, [True, False])
    for dated in kinds:
        parsed = [_parsed(text, dated) for text in (rules.earliest, rules.latest)]
        earliest, latest = parsed
        if earliest is None or latest is None:
            continue
        if earliest >= latest:
            raise BadRuleError("bounds", f"earliest {rules.earliest} is not before latest {rules.latest}")
        return earliest, latest, dated
    wanted = " or ".join(
        'dates such as "2026-01-01T00:00:00Z"' if dated else 'lengths such as "90s"' for dated in kinds
    )
    raise BadRuleError("bounds", f"earliest and latest must both be {wanted}")


def _parsed(text: str, dated: bool) -> int | None:
    try:
        if dated:
            at = Timestamp()
            at.FromJsonString(text)
            return at.ToNanoseconds()
        length = Duration()
        length.FromJsonString(text)
        return length.ToNanoseconds()
    except ValueError:
        return None


def _resolution(span: int, unit: int, message: str, rules: pb.Time) -> int:
    """The length of one step of the grid.

    By default it is 1 s, or the integer's own unit. A Timestamp or Duration takes the next smaller power of ten that is
    at most a ten-thousandth of the range; an integer the next larger one that gives few enough steps.
    """
    if rules.HasField("resolution"):
        declared = _nanoseconds(rules.resolution)
        if declared < unit or declared % unit:
            raise BadRuleError("resolution", "must be a whole number of the field's steps, and above 0")
        if declared > span:
            raise BadRuleError("resolution", "must be at most the range from earliest to latest")
        return declared
    step = _SECOND if message else unit
    while message and step > 1 and step * _CELLS > span:
        step //= 10
    while span // step > GRID_LIMIT:
        step *= 10
    return step


def _grid(earliest: int, latest: int, step: int, unit: int) -> Grid:
    """The points on which a time leaves, in ticks. Fractions of a second do not leave where no step has them."""
    whole = _SECOND if step % _SECOND == 0 else unit
    lower, upper = (time // whole * whole // unit for time in (earliest, latest))
    width = step // unit
    size = (upper - lower + width // 2) // width
    if not 1 <= size <= GRID_LIMIT:
        raise BadRuleError(
            "resolution",
            f"the range has {size:,} steps, and 1 to 2^40 are possible",
            "set another resolution",
        )
    return Grid(lower, upper, width, size, integral=True)


def _shift(site: FieldSite, rules: pb.Time) -> int | None:
    """The largest shift that is hidden; None where the rule sets none."""
    if not rules.HasField("largest_shift"):
        return None
    shift = _nanoseconds(rules.largest_shift)
    if shift <= 0:
        raise BadRuleError("largest-shift", "must be above 0")
    site.warn(
        "largest-shift",
        f"hides shifts up to {number(shift / _SECOND)} s only: times further apart can be told from each other",
        "remove largest_shift, so that no two times between the bounds can be told apart",
    )
    return shift


def _mechanism(
    grid: Grid, sensitivity: int, epsilon: Fraction, limits: tuple[int, int]
) -> tuple[NumericMechanism, bool]:
    """The mechanism, and whether its outputs stay between the bounds: they do where the type can't hold others."""
    for in_range in (False, True):
        kind = numeric_choice.best(grid.size, sensitivity, epsilon, in_range=in_range, local=True)
        mechanism = numeric.make(kind, grid.size, sensitivity, epsilon, in_range=in_range)
        if outputs_fit(grid, mechanism, limits):
            break
    return mechanism, in_range


def _in_seconds(ticks: NumericPayload) -> NumericPayload:
    """What estimators read of nanoseconds."""
    grid = ticks.grid
    return replace(
        ticks,
        grid=Grid(grid.lower / _SECOND, grid.upper / _SECOND, grid.step / _SECOND, grid.size, integral=False),
    )


def _nanoseconds(length: Duration) -> int:
    return length.seconds * _SECOND + length.nanos


def _messages(field: FieldDescriptor, transform: Transform, plan: FieldPlan) -> Step:
    """Protects Timestamps or Durations, absent ones as if they were 0.

    Seconds and nanoseconds that no valid message holds are added up as well, so that they count as the time that
    they mean. What is written is valid: a Timestamp counts its nanoseconds forward from its second, and a Duration has
    the same sign in both.
    """
    name, items = field.name, plan.repeats
    protect = transform.function()
    signed = plan.payload.message == _DURATION

    def write(time: Any, into: Any) -> None:
        seconds, nanos = divmod(protect(time.seconds * _SECOND + time.nanos), _SECOND)
        if signed and seconds < 0 and nanos:
            seconds, nanos = seconds + 1, nanos - _SECOND
        into.seconds = seconds  # Which sets a message, even to 0.
        into.nanos = nanos

    def single(source: Any, target: Any, _pseudonymise: Any) -> None:
        write(getattr(source, name), getattr(target, name))

    def moment(source: Any, target: Any, _pseudonymise: Any) -> None:
        """What `single` does with a Timestamp, in fewer steps."""
        time, into = getattr(source, name), getattr(target, name)
        into.seconds, into.nanos = divmod(protect(time.seconds * _SECOND + time.nanos), _SECOND)

    blank = Duration()

    def repeated(source: Any, target: Any, _pseudonymise: Any) -> None:
        times = list(getattr(source, name)[:items])
        times += [blank] * (items - len(times))
        into = getattr(target, name)
        for time in times:
            write(time, into.add())

    if field.is_repeated:
        return repeated
    return single if signed else moment
