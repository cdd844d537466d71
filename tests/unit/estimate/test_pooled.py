"""Reports of several policies: each is read by its own law, and the estimates are put together.

A test of an interval of confidence 0.999999 fails by chance once in 10^6 times.
"""

import contextlib
import itertools
import json
import math

import numpy as np
import pytest

from dpmesh.estimate import EstimateError, Reader
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

TYPES = compiled(
    """enum Room { R0 = 0; R1 = 1; R2 = 2; R3 = 3; }
    message Report {
        string id = 1 [(dpmesh.v1.field).unit = {}];
        Room room = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}];
        double speed = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 100 epsilon: 1}];
        optional double load = 4 [(dpmesh.v1.field).numeric = {lower: 0 upper: 10 epsilon: 1}];
        repeated double at = 5 [(dpmesh.v1.field).vector = {dimension: 3 l2_norm: 1 epsilon: 1}];
        map<string, sint64> apps = 6 [(dpmesh.v1.field).histogram = {
            lower: 0 upper: 10 epsilon: 1 keys: ["a", "b"] }];
        string note = 7 [(dpmesh.v1.field).public = {}];
    }"""
)
NAME = f"{TYPES.package}.Report"
SURE = 0.999999


def policy(epsilon, **bounds):
    """All fields at another epsilon."""
    document = policy_pb2.Policy()
    for field in TYPES.Report.DESCRIPTOR.fields:
        rules = document.fields[f"{NAME}.{field.name}"]
        rules.CopyFrom(Policy().rules.field(field).rules)
        kind = rules.WhichOneof("kind")
        inner = getattr(rules, kind)
        if "epsilon" in inner.DESCRIPTOR.fields_by_name:
            inner.epsilon = epsilon
    for name, value in bounds.items():
        setattr(document.fields[f"{NAME}.speed"].numeric, name, value)
    return document


def version(rules):
    return Policy(rules).plan(TYPES.Report.DESCRIPTOR).version


LOW, HIGH = policy(0.75), policy(4)
A, B = version(LOW), version(HIGH)
POLICIES = {A: LOW, B: HIGH}


def pseudonym(value, epoch, namespace=""):
    return bytes(16)


def released(rules, count, make):
    plan = Policy(rules).plan(TYPES.Report.DESCRIPTOR)
    return [plan.protect(make(number), pseudonym) for number in range(count)]


def report(number):
    """Speeds evenly from 0 to 80; rooms at 0.4, 0.3, 0.2, 0.1; "a" is 3 and "b" 0."""
    room = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3][number % 10]
    return TYPES.Report(
        id="u",
        room=room,
        speed=0.8 * (number * 37 % 100) + 0.4,
        load=5,
        at=[0.5, -0.5, 0],
        apps={"a": 3, "b": 0},
    )


def later(number):
    """A mean speed of 80, and the fourth room."""
    return TYPES.Report(id="u", room=3, speed=80, load=5, at=[0.5, -0.5, 0], apps={"a": 3, "b": 0})


@pytest.fixture(scope="module")
def pairs():
    return [(A, each) for each in released(LOW, 3000, report)] + [
        (B, each) for each in released(HIGH, 1000, report)
    ]


def test_reading_all_reports_by_one_law_is_biased_and_by_its_own_it_is_not():
    """The laws' expectations: k-ary randomized response over four values, half of the reports at epsilon 2."""
    truth = np.array([0.4, 0.3, 0.2, 0.1])
    one, two = (math.exp(epsilon) / (math.exp(epsilon) + 3) for epsilon in (1, 2))

    def seen(p):
        return (1 - p) / 3 + truth * (p - (1 - p) / 3)

    def inverted(received, p):
        return (received - (1 - p) / 3) / (p - (1 - p) / 3)

    pooled = inverted((seen(one) + seen(two)) / 2, one)
    assert pooled == pytest.approx([0.478, 0.326, 0.174, 0.022], abs=5e-4)
    assert (inverted(seen(one), one) + inverted(seen(two), two)) / 2 == pytest.approx(truth)


@pytest.mark.parametrize("alike", [False, True])
def test_estimates_of_a_mixed_fleet_hold_what_its_senders_held(pairs, alike):
    reader = Reader(TYPES.Report, policies=POLICIES, alike=alike)
    shares = reader.frequencies("room", pairs, confidence=SURE)
    assert all(shares[f"R{room}"].covers(share) for room, share in enumerate((0.4, 0.3, 0.2, 0.1)))
    assert sum(share.value for share in shares.values()) == pytest.approx(1)
    assert reader.mean("speed", pairs, confidence=SURE).covers(40)
    assert reader.sum("speed", pairs, confidence=SURE).covers(160_000)
    assert reader.mean("load", pairs, held=1.0, confidence=SURE).covers(5)
    assert reader.sum("load", pairs, held=1.0, confidence=SURE).covers(20_000)
    found = reader.distribution("speed", pairs, bins=[0, 40, 80, 100], confidence=SURE)
    assert found.shares[0].covers(0.5)
    assert found.quantile(0.25).covers(20)
    assert found.below(60).covers(0.75)
    vector = reader.mean_vector("at", pairs, confidence=SURE)
    assert vector.covers([0.5, -0.5, 0]).all()
    sums = reader.histogram("apps", pairs, confidence=SURE)
    assert sums["a"].covers(12_000)
    assert sums["b"].covers(0)
    assert {found.n, vector.n, sums["a"].n, shares["R0"].n} == {4000}


def truth_of(rules):
    fields = Policy(rules).plan(TYPES.Report.DESCRIPTOR).fields
    return float(next(field for field in fields if field.path == "room").payload.mechanism.truth)


TRUTHS = {digest: truth_of(rules) for digest, rules in POLICIES.items()}


def rooms(generator, count):
    """Columns of rooms by digest, as `count` senders under each policy send them."""
    columns = {}
    for digest, truth in TRUTHS.items():
        held = generator.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])
        lied = (held + generator.integers(1, 4, count)) % 4
        columns[digest] = np.where(generator.random(count) < truth, held, lied)
    return columns


def test_read_by_one_law_the_reports_of_two_give_a_wrong_answer_that_looks_sure():
    """The one law's answer is 0.24 too large, which is 7 times its standard error; more reports show the other law."""
    columns = rooms(np.random.default_rng(), 2000)
    assert (
        Reader(TYPES.Report, policies=POLICIES)
        .frequencies("room", columns, confidence=SURE)["R0"]
        .covers(0.4)
    )
    one, mixed = Reader(TYPES.Report, LOW), np.concatenate(list(columns.values()))
    with contextlib.suppress(EstimateError):  # So many reports may show that another policy released them.
        assert not one.frequencies("room", mixed)["R0"].covers(0.4)


def test_senders_that_differ_count_by_their_number_unless_they_are_said_to_be_alike():
    pairs = [(A, each) for each in released(LOW, 3000, report)] + [
        (B, each) for each in released(HIGH, 1000, later)
    ]
    reader = Reader(TYPES.Report, policies=POLICIES)
    assert reader.mean("speed", pairs, confidence=SURE).covers(50)
    assert reader.frequencies("room", pairs, confidence=SURE)["R3"].covers(0.325)
    alike = Reader(TYPES.Report, policies=POLICIES, alike=True)
    assert not alike.mean("speed", pairs, confidence=SURE).covers(50), "it believed that they are"
    assert alike.sum("speed", pairs, confidence=SURE).covers(200_000)


def test_weights_by_variance_are_narrower_and_do_not_depend_on_the_reports(pairs):
    by_number, alike = (Reader(TYPES.Report, policies=POLICIES, alike=each) for each in (False, True))
    assert alike.mean("speed", pairs).margin < 0.8 * by_number.mean("speed", pairs).margin
    assert (
        alike.frequencies("room", pairs)["R0"].margin
        < 0.8 * by_number.frequencies("room", pairs)["R0"].margin
    )
    a, b = (
        reader.mean("speed", [each for digest, each in pairs if digest == name])
        for name, reader in ((A, Reader(TYPES.Report, LOW)), (B, Reader(TYPES.Report, HIGH)))
    )
    pooled = alike.mean("speed", pairs).value
    weight = (pooled - b.value) / (a.value - b.value)
    again = [(A, each) for each in released(LOW, 3000, later)] + [
        (B, each) for each in released(HIGH, 1000, report)
    ]
    a, b = (
        reader.mean("speed", [each for digest, each in again if digest == name])
        for name, reader in ((A, Reader(TYPES.Report, LOW)), (B, Reader(TYPES.Report, HIGH)))
    )
    assert alike.mean("speed", again).value == pytest.approx(weight * a.value + (1 - weight) * b.value)


def test_the_pooled_law_has_the_right_mean_and_variance():
    """The whole law of two reports of a bool, one under each policy: unbiased, with the variance of its weights."""
    types = compiled("message M { bool b = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }")
    other = policy_pb2.Policy()
    other.fields[f"{types.package}.M.b"].categorical.epsilon = 2
    rules = {Policy(each).plan(types.M.DESCRIPTOR).version: Policy(each) for each in (None, other)}
    truths = [
        float(each.plan(types.M.DESCRIPTOR).fields[0].payload.mechanism.truth) for each in rules.values()
    ]
    for alike, weights in ((False, [0.5, 0.5]), (True, None)):
        reader = Reader(types.M, policies=rules, alike=alike)
        mean = second = 0.0
        for outcome in itertools.product((True, False), repeat=2):  # Both senders hold True.
            chance = math.prod(p if value else 1 - p for p, value in zip(truths, outcome, strict=True))
            found = reader.frequencies("b", list(zip(rules, outcome, strict=True)))[True].value
            mean, second = mean + chance * found, second + chance * found**2
        variances = [p * (1 - p) / (2 * p - 1) ** 2 for p in truths]
        if weights is None:
            precise = [1 / (0.25 / (2 * p - 1) ** 2) for p in truths]
            weights = [each / sum(precise) for each in precise]
        assert mean == pytest.approx(1)
        assert second - mean**2 == pytest.approx(
            sum(w * w * v for w, v in zip(weights, variances, strict=True))
        )


@pytest.mark.parametrize("alike", [False, True])
def test_intervals_cover_as_often_as_they_say(alike):
    """Of 1,000 intervals of 95 %, fewer than 905 or more than 986 cover at most once in 10^6.

    By the binomial law, for a coverage of 0.945 to 0.958, which 6,000 fleets had: P(at most 904) and P(at least 987).
    """
    generator, covered = np.random.default_rng(), 0
    reader = Reader(TYPES.Report, policies=POLICIES, alike=alike)
    for _ in range(1000):
        covered += reader.frequencies("room", rooms(generator, 400))["R1"].covers(0.3)
    assert 905 <= covered <= 986


def test_accumulators_take_parts_in_any_order_and_are_stored_and_merged(pairs):
    reader = Reader(TYPES.Report, policies=POLICIES)
    whole = reader.accumulator("speed", bins=4).add(pairs)
    first = reader.accumulator("speed", bins=4).add(pairs[::2])
    second = reader.accumulator("speed", bins=4).add(pairs[1::2])
    stored = json.loads(json.dumps(first.to_dict()))
    merged = reader.accumulator("speed", bins=4).merge(second).merge(stored)
    assert (merged.mean(), merged.n, merged.quantile(0.5)) == (whole.mean(), 4000, whole.quantile(0.5))
    columns = {digest: np.array([each.speed for name, each in pairs if name == digest]) for digest in (A, B)}
    assert reader.mean("speed", columns) == whole.mean()
    size = len(json.dumps(whole.to_dict()))
    assert len(json.dumps(whole.add(pairs).to_dict())) < size + 200


def test_a_digest_of_no_policy_is_refused_and_nothing_of_the_call_counts(pairs):
    accumulator = Reader(TYPES.Report, policies=POLICIES).accumulator("speed")
    for bad in (
        [*pairs[:2], ("0" * 16, pairs[0][1])],
        [*pairs[:2], (A, TYPES.Report(speed=1e9, load=5))],
        [*pairs[:2], pairs[0][1]],
        [*pairs[:2], (None, 3.0)],
        [*pairs[:2], (A, 3.0, 1)],
        {A: [pairs[0][1]], "": [pairs[0][1]]},
        {A: [pairs[0][1]], None: [pairs[0][1]]},
    ):
        with pytest.raises(EstimateError):
            accumulator.add(bad)
        assert accumulator.n == 0
    for bad in ({}, 3, {"format": 1, "policies": {"0" * 16: {}}}, {"format": 1, "policies": {A: {}}}):
        with pytest.raises(EstimateError):
            accumulator.merge(bad)
    with pytest.raises(EstimateError, match="there are no values"):
        accumulator.mean()


def test_bad_sets_of_policies_are_refused():
    with pytest.raises(EstimateError, match=f"which is {B}"):
        Reader(TYPES.Report, policies={A: HIGH})
    with pytest.raises(EstimateError, match="1 to 64"):
        Reader(TYPES.Report, policies={})
    with pytest.raises(EstimateError, match="1 to 64"):
        Reader(TYPES.Report, policies=dict.fromkeys(map(str, range(65))))
    with pytest.raises(EstimateError, match="stands instead of"):
        Reader(TYPES.Report, LOW, policies=POLICIES)
    with pytest.raises(EstimateError, match="several policies"):
        Reader(TYPES.Report, alike=True)
    with pytest.raises(EstimateError, match="make a Reader for that"):
        Reader(TYPES.Report, policies=POLICIES).value("speed", 3.0)


def test_policies_that_differ_in_more_than_their_noise(pairs):
    wide, hidden = policy(2, upper=200), policy(2)
    hidden.fields[f"{NAME}.speed"].Clear()
    hidden.fields[f"{NAME}.speed"].suppress.SetInParent()
    digests = [version(each) for each in (wide, hidden)]
    reader = Reader(
        TYPES.Report, policies={A: LOW, digests[0]: wide, digests[1]: hidden, version(None): None}
    )
    mixed = [*pairs[:3000], *((digests[0], each) for each in released(wide, 1000, report))]
    assert reader.mean("speed", mixed, confidence=SURE).covers(40)
    found = reader.distribution("speed", mixed, bins=[0, 40, 80, 200], confidence=SURE)
    assert found.shares[0].covers(0.5)
    with pytest.raises(EstimateError, match="bins"):
        reader.distribution("speed", mixed, bins=2)
    with pytest.raises(EstimateError, match="carries no noise under one of the policies"):
        reader.mean("speed", [*mixed, (digests[1], TYPES.Report())])
    with pytest.raises(EstimateError, match="no such field"):
        reader.mean("nothing", mixed)
    with pytest.raises(EstimateError, match="carries no noise"):
        reader.mean("note", mixed)


def test_a_field_of_any_kind_is_refused_for_the_reason_that_a_reader_of_one_policy_has(pairs):
    reader = Reader(TYPES.Report, policies=POLICIES)
    with pytest.raises(EstimateError, match="is never absent"):
        reader.mean("speed", pairs, held=0.5)
    with pytest.raises(EstimateError, match="never absent"):
        reader.frequencies("room", pairs, held=0.5)
    with pytest.raises(EstimateError, match="not categorical"):
        reader.frequencies("speed", pairs)
    with pytest.raises(EstimateError, match="candidates out"):
        reader.frequencies("room", pairs, candidates=["x"])
    shares = reader.frequencies("room", pairs, project=True)
    assert sum(share.value for share in shares.values()) == pytest.approx(1)
    assert reader.distribution("speed", pairs).n == 4000
