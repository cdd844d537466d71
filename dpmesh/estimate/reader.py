"""Reader: what a receiver of noisy messages can estimate from the policy alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.estimate import (
    accumulator,
    columns,
    heat_map,
    histograms,
    numbers,
    paths,
    pooled,
    supports,
    vectors,
)
from dpmesh.estimate.absence import Held
from dpmesh.estimate.distribution import Bins, Distribution
from dpmesh.estimate.heat_map import HeatMap
from dpmesh.estimate.laws import Law, law_of
from dpmesh.estimate.pooled import AnyAccumulator
from dpmesh.estimate.ratio import fieller
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.spread import checked
from dpmesh.estimate.vectors import VectorEstimate
from dpmesh.policy import Policy
from dpmesh.policy.plan import FieldPlan, Plan
from dpmesh.v1 import policy_pb2

# Numbers, messages that hold them, or a column of numpy or Arrow; with several policies, pairs or a mapping of these.
Values = (
    Iterable[float] | Iterable[Message] | Iterable[tuple[str, float | Message]] | Mapping[str, Iterable[Any]]
)


class Reader:
    """Estimates from received values of one message type.

    Everything is computed from the annotations (and overlays) that the senders used; no secret of theirs is
    needed. Fields are named by their path: names joined by dots, such as "air_time" or "origins.flights".

    All values of one call have to come from senders under this one policy. Values that it can't have released are
    refused: between the points of its grid, out of its range or domain, in lists of another length, or on average
    where its law can't put them. Most policies can't be told apart by that. Two epsilons of one bool, or of one
    number IN_RANGE, give the same outputs at other rates, and reports of both together give a wrong estimate with
    an interval that looks right. The digests that come with the reports tell policies apart: keep them. Then make one
    Reader for each policy and pass the digests of its reports as `digests`; or make one for all `policies`.

    A reader with `policies` takes values with their digests: pairs such as ("9f86d081884c7d65", report), or a mapping
    from digests to messages, numbers or columns. It reads each by its own law, and puts the estimates together: see
    `dpmesh.estimate.pooled`.

    Messages that left under on_exhausted = "suppress" hold no report. They lack the fields that are otherwise always
    filled (optional ones, wrappers, repeated ones). A plain number or category in them is its type's default, which
    only the sender can tell from a report.

    Args:
        message_type: The generated class, its descriptor, or a plan that is already compiled.
        policy: The senders' overlays: a policy file's path, a dpmesh.v1.Policy message, or a compiled Policy.
        digests: The digests that the reports' senders named, in any order: see `dpmesh_grpc.peer_policy`. `dpmesh plan`
            prints them, and spans have them as dpmesh.policy.version.
        policies: Instead of `policy` and `digests`: by digest, the policies of all senders, each as `policy` would be.
            None stands for the annotations alone.
        alike: The senders of all policies hold values of one distribution, as those of rings of a fleet at one time
            do. Then estimates (but not sums) are weighted by their variance, and more precise. Otherwise each policy
            counts by its number of values, and estimates are about all values that were sent.

    Raises:
        AnnotationError: The type's annotations are bad.
        ConfigError: The policy file is.
        EstimateError: Nothing of the type is protected, so there is nothing to estimate; or a digest is not its
            policy's; or there are no policies, or too many.
    """

    def __init__(
        self,
        message_type: type[Message] | Descriptor | Plan,
        policy: str | Path | policy_pb2.Policy | Policy | None = None,
        *,
        digests: str | Iterable[str] = (),
        policies: Mapping[str, str | Path | policy_pb2.Policy | Policy | None] | None = None,
        alike: bool = False,
    ) -> None:
        self._fields: dict[str, FieldPlan] = {}
        self._alike = alike
        self._readers: dict[str, Reader] = {}
        if policies is not None:
            if policy is not None or digests or isinstance(message_type, Plan):
                raise EstimateError("policies", "stands instead of policy, digests and a compiled plan")
            self._readers = _readers(message_type, policies)
            self.plan: Plan = next(iter(self._readers.values())).plan
            return
        if alike:
            raise EstimateError("alike", "is for several policies")
        rules = policy if isinstance(policy, Policy) else Policy(policy)
        self.plan = message_type if isinstance(message_type, Plan) else paths.plan_of(message_type, rules)
        if not ({digests} if isinstance(digests, str) else set(digests)) <= {self.plan.version}:
            raise EstimateError(
                self.plan.descriptor.full_name,
                f"one of the digests is not this policy's, which is {self.plan.version}: give Reader the senders' "
                "policy file, if they have one, and all policies of the reports as `policies`",
            )
        self._blank = paths.blank(self.plan)

    def accumulator(
        self,
        path: str,
        *,
        candidates: Iterable[str] | None = None,
        cell_km: float | None = None,
        bins: Bins | None = None,
    ) -> AnyAccumulator:
        """An empty accumulator: it takes a field's values in parts, in memory that does not grow with them.

        Args:
            path: The field or oneof.
            candidates: As for `frequencies`.
            cell_km: As for `heat_map`.
            bins: As for `distribution`. Without bins only means and sums of a numeric field are kept.

        Raises:
            EstimateError: An unknown field; candidates, a cell_km or bins that don't fit; or candidates are missing.
        """
        if self._readers:
            self._field(path)
            noised = {digest: each for digest, each in self._readers.items() if each._has(path)}
            fields = {digest: (each.plan, each._field(path), each._values) for digest, each in noised.items()}
            without = frozenset(self._readers.keys() - noised.keys())
            return pooled.make(fields, without, candidates, cell_km, bins, alike=self._alike)
        return accumulator.make(self.plan, self._field(path), self._values, candidates, cell_km, bins)

    def mean(
        self, path: str, values: Values, *, held: Held | None = None, confidence: float = 0.95
    ) -> Estimate:
        """The mean of a numeric field, unbiased.

        Where values may be absent (repeated and optional fields, wrappers, messages in messages), senders fill their
        places up with defaults, which hides how many values a sender held. There the mean is over all places, an absent
        value counts as the default, and the estimate says `per_place`. Two values of 50 in
        five places have a mean of 20. The mean over the values that are held needs the share of places that hold one.

        Args:
            path: The field.
            values: What was received: numbers in the field's units, or messages that hold it.
            held: The share of places that hold a value, above 0 and at most 1, as a number or as an estimate from
                another field: `mean("count", messages, confidence=0.975).scaled(1 / max_items)`. An estimate needs
                half the chance to fail that `confidence` leaves. With it the mean is that of the values that are
                held: their clamped values, without what fills the other places.
            confidence: How often the interval holds the mean of what the senders held, clamped to the bounds.

        Raises:
            EstimateError: An unknown field, one that is not numeric, no values, or values that it can't have; or
                `held` is no share, or is given for a field that is never absent.
        """
        numbers.as_number(self._field(path))
        return self.accumulator(path).add(values).mean(held=held, confidence=confidence)

    def sum(
        self, path: str, values: Values, *, held: Held | None = None, confidence: float = 0.95
    ) -> Estimate:
        """The sum of what the senders of the values held; arguments as for `mean`.

        An absent value counts as the default that fills its place. Where that is 0 it adds nothing, and the sum is
        that of the held values. Where 0 is outside of the bounds, `held` takes it out.

        Raises:
            EstimateError: As for `mean`.
        """
        numbers.as_number(self._field(path))
        return self.accumulator(path).add(values).sum(held=held, confidence=confidence)

    def distribution(
        self,
        path: str,
        values: Values,
        *,
        bins: Bins = "auto",
        held: Held | None = None,
        confidence: float = 0.95,
    ) -> Distribution:
        """The share of each bin of a numeric field.

        Noise hides on which side of an edge a number near it was. So the shares are unbiased, and their intervals hold,
        if numbers are spread evenly within each bin; what they do between bins does not matter. Where values may be
        absent, an absent one counts as the default that fills its place: see `mean`.

        Args:
            path: The field.
            values: What was received: numbers in the field's units, messages that hold it, or a column.
            bins: How many equal bins the range has; "auto" for as many as are told apart well, 2 to 20; or their edges,
                which increase from at most the lower bound to at least the upper one.
            held: The share of places that hold a value: see `mean`. The shares are those of held values then.
            confidence: How often each interval, by itself, holds its share.

        Raises:
            EstimateError: An unknown field, one that is not numeric, no values, or values that it can't have; or bins
                so narrow that the noise blurs them beyond what can be undone; or as for `mean` on `held`.
        """
        numbers.as_number(self._field(path))
        found = self.accumulator(path, bins=bins).add(values)
        return found.distribution(held=held, confidence=confidence)

    def quantile(
        self,
        path: str,
        values: Values,
        q: float,
        *,
        bins: Bins = "auto",
        held: Held | None = None,
        confidence: float = 0.95,
    ) -> Estimate:
        """The number below which a part q of all numbers lies, such as the median for 0.5.

        It is read off `distribution`, by linear interpolation within a bin; its interval ends at edges of bins. For
        several quantiles of these values, ask the distribution: `distribution(...).quantile(q)`.

        Args:
            path: The field.
            values: As for `distribution`.
            q: Between 0 and 1.
            bins: As for `distribution`.
            held: As for `distribution`.
            confidence: How often the interval holds the quantile.

        Raises:
            EstimateError: As for `distribution`.
            ValueError: q or the confidence is not between 0 and 1.
        """
        return self.distribution(path, values, bins=bins, held=held, confidence=confidence).quantile(q)

    def mean_vector(
        self, path: str, values: Iterable[Sequence[float]] | Iterable[Message], *, confidence: float = 0.95
    ) -> VectorEstimate:
        """The mean of a vector field, unbiased, with an interval for each coordinate.

        Args:
            path: The field.
            values: What was received: vectors, or messages that hold them. They are read one by one.
            confidence: How often each interval, by itself, holds the mean of that coordinate of what the senders held,
                scaled down to the declared norm. A sender without a vector of the right length held the zero vector.

        Raises:
            EstimateError: An unknown field, one that is no vector, no values, or vectors that it can't have.
        """
        vectors.mechanism_of(self._field(path))
        return self.accumulator(path).add(values).mean_vector(confidence=confidence)

    def frequencies(
        self,
        path: str,
        values: Iterable[Any],
        *,
        candidates: Iterable[str] | None = None,
        held: Held | None = None,
        project: bool = False,
        confidence: float = 0.95,
    ) -> dict[Any, Estimate]:
        """The share of each category of a field, or of each choice of a randomized oneof.

        They are unbiased, so that they can be added up, over categories or over groups of reports; single ones may
        be below 0. With `project` they are shares, none below 0, and nearer to the truth as a whole: the more so the
        more categories there are and the less epsilon. They are biased then, so don't add up what is projected.

        Where values may be absent, the shares are those of all places, and an absent value counts as the category
        that fills its place (the type's default, or the domain's first where that is not in it): see `mean`.

        Args:
            path: The field or oneof.
            values: What was received: messages; or members of the domain (enums by number or name), lists of them where
                subsets leave, and CategoryReports or pairs of a seed and a hash where these do. Or a numpy array of
                whole numbers, with a row for each list or pair.
            candidates: The texts whose shares are wanted, for a field of CategoryReports, and only for such a one.
            held: The share of places that hold a value: see `mean`. The shares are those of held values then.
            project: Move the shares to the nearest ones that can be, and cut the intervals to 0 and 1. These stay as
                honest as they were: see `frequencies.projected`.
            confidence: How often each interval, by itself, holds its share.

        Returns:
            Estimates by category, in the domain's order or in that of the candidates: enums by name, others by value, a
            oneof's choices by the member's name or "none". They sum to 1, but for those of candidates.

        Raises:
            EstimateError: An unknown field, one that is not categorical, no values, an unknown category, or shares
                that this policy can't give; or `held` is no share, or is given for a field that is never absent; or
                there are no candidates where they are needed, or some (or `project`) where they don't fit.
        """
        accumulator.category_of(self._field(path))
        found = self.accumulator(path, candidates=candidates).add(values)
        return found.frequencies(held=held, project=project, confidence=confidence)

    def heat_map(
        self,
        path: str,
        messages: Iterable[Message],
        *,
        cell_km: float | None = None,
        confidence: float = 0.95,
    ) -> HeatMap:
        """How many places lie in each hexagonal cell of the region, and where their middle is.

        Where places may be absent (repeated and optional fields), an absent one counts as the region's middle.

        Args:
            path: A location field.
            messages: What was received.
            cell_km: The distance of the centres of neighbouring cells. The smaller they are, the wider the intervals.
                By default some 40 cells cover the region.
            confidence: How often each interval, by itself, holds its figure.

        Raises:
            EstimateError: An unknown field, one that is no location, no places, places that it can't have released, or
                cells that are too small or too many.
        """
        heat_map.place_of(self._field(path))
        return self.accumulator(path, cell_km=cell_km).add(messages).heat_map(confidence=confidence)

    def histogram(
        self, path: str, messages: Iterable[Message], *, confidence: float = 0.95
    ) -> dict[Any, Estimate]:
        """The sum of each key's value in a histogram, over all messages.

        With public keys the sums are unbiased. Without, a key that a message lacks counts as 0 there, so the sums of
        keys with small values are too small; their intervals reach as far as the threshold allows.

        Args:
            path: The field.
            messages: What was received. They are read one by one.
            confidence: How often each interval, by itself, holds the sum of what the senders held, as clamped to the
                grid.

        Returns:
            Estimates by key: in the rule's order, or sorted if it names no keys. `n` is the number of maps.

        Raises:
            EstimateError: An unknown field, one that is no histogram, no messages, or a map that this policy can't have
                released.
        """
        histograms.histogram_of(self._field(path))
        return self.accumulator(path).add(messages).histogram(confidence=confidence)

    def value(self, path: str, value: float | Message, *, confidence: float = 0.95) -> Estimate:
        """One noisy number, such as an aggregate of the central model, and the interval its noise gives.

        Args:
            path: A numeric field whose mechanism is discrete Laplace or discrete Gaussian.
            value: What was received: the number, or a message that holds it once.
            confidence: How often, at least, the interval holds the number before noise as clamped.

        Raises:
            EstimateError: An unknown field, one with another mechanism, or a value that it can't have.
        """
        field, law, index, at = self._single(path, value)
        grid = numbers.as_number(field).grid
        exact = grid.integral and grid.step == 1
        # The clamp IN_RANGE only moves outputs towards the truth, so the law's margin holds there as well.
        margin = (law.margin(checked(confidence)) + (0 if exact else 0.5)) * grid.step
        return Estimate(grid.value(0) + index * grid.step, at - margin, at + margin, 1, confidence)

    def ratio(
        self,
        numerator: str,
        dividend: float | Message,
        denominator: str,
        divisor: float | Message,
        *,
        confidence: float = 0.95,
    ) -> Estimate:
        """The ratio of two aggregates with independent noise, such as a mean from a sum and a count.

        The interval is Fieller's, with the noises' own laws (see `dpmesh.estimate.ratio`), and infinite where
        the divisor can't be told from 0. The ratio of unbiased numbers is itself only nearly unbiased.

        Args:
            numerator: The path of the field that is divided; as for `value`.
            dividend: What was received of it.
            denominator: The path of the field that divides.
            divisor: What was received of it.
            confidence: How often the interval holds the ratio of the numbers before noise.

        Raises:
            EstimateError: As for `value`; or the divisor is exactly 0.
        """
        above, law_a, index_a, _ = self._single(numerator, dividend)
        below, law_b, index_b, _ = self._single(denominator, divisor)
        grid_a, grid_b = numbers.as_number(above).grid, numbers.as_number(below).grid
        a, b = grid_a.lower / grid_a.step + index_a, grid_b.lower / grid_b.step + index_b
        if b == 0:
            raise EstimateError(denominator, "is 0, which nothing can be divided by")
        low, high = fieller(a, b, law_a, law_b, checked(confidence))
        unit = grid_a.step / grid_b.step
        return Estimate(a / b * unit, low * unit, high * unit, 1, confidence)

    def _single(self, path: str, value: float | Message) -> tuple[FieldPlan, Law, float, float]:
        """The field, its noise's law, the unbiased grid index, and the number as it was received."""
        if self._readers:
            raise EstimateError(path, "one number has one policy: make a Reader for that")
        field = self._field(path)
        mechanism = numbers.as_number(field).mechanism
        law = law_of(mechanism)
        if law is None:
            raise EstimateError(path, f"{mechanism.kind} does not simply add noise, so use mean")
        received = list(self._values(field, [value]))
        if len(received) != 1:
            raise EstimateError(path, f"the message holds it {len(received)} times; pass one of the numbers")
        return field, law, float(numbers.indexes(field, received)[0]), float(received[0])

    def _field(self, path: str) -> FieldPlan:
        """The plan of a field; with several policies that of the first under which it carries noise."""
        if path not in self._fields:
            plans = [each.plan for each in self._readers.values() if each._has(path)] or [self.plan]
            self._fields[path] = paths.find(plans[0], path)
        return self._fields[path]

    def _has(self, path: str) -> bool:
        try:
            self._field(path)
        except EstimateError:
            return False
        return True

    def _values(self, field: FieldPlan, values: Iterable[Any]) -> Iterable[Any]:
        """Numbers and columns as they are; messages are read."""
        if columns.is_column(values):
            return values
        each = iter(values)
        first = list(itertools.islice(each, 1))
        rest = itertools.chain(first, each)
        whole = bool(first) and isinstance(first[0], Message) and not supports.is_report(first[0])
        return self._read(field, rest) if whole else rest

    def _read(self, field: FieldPlan, messages: Iterable[Any]) -> Iterable[Any]:
        wanted = self.plan.descriptor.full_name
        read = paths.reader(self.plan.descriptor, field)
        for message in messages:
            if not isinstance(message, Message) or message.DESCRIPTOR.full_name != wanted:
                raise EstimateError(field.path, f"one of the values is no {wanted}, which this reader is for")
            if field.memo is not None or not self._blank(message):
                yield from read(message)


def _readers(
    message_type: type[Message] | Descriptor,
    policies: Mapping[str, str | Path | policy_pb2.Policy | Policy | None],
) -> dict[str, Reader]:
    """A reader for each policy, by digest."""
    if not 0 < len(policies) <= pooled.POLICIES_LIMIT:
        raise EstimateError("policies", f"there must be 1 to {pooled.POLICIES_LIMIT}")
    return {digest: Reader(message_type, policy, digests=digest) for digest, policy in policies.items()}
