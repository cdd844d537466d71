"""Distributions: unbiased by their laws, exactly; what is told of bins that can't be known.

The check on draws has a false-alarm rate of 1e-7 for each figure.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dpmesh.estimate import Estimate, EstimateError, Reader, distribution
from dpmesh.estimate.distribution import _inverse
from dpmesh.estimate.output_laws import cumulative
from dpmesh.policy.codegen.source import draw_function
from tests.support.protos import compiled

HELD = np.array([0.45, 0.0, 0.35, 0.2])
EDGES = (0.0, 20.0, 50.0, 70.0, 100.0)
RULES = [
    "epsilon: 2",
    "epsilon: 2 output: IN_RANGE",
    "epsilon: 8",
    "epsilon: 2 mechanism: PIECEWISE",
    "epsilon: 2 mechanism: HYBRID",
    "epsilon: 4 mechanism: DISCRETE_LAPLACE",
    "epsilon: 4 mechanism: DISCRETE_LAPLACE output: IN_RANGE",
    "epsilon: 1 sensitivity: 1 resolution: 0.5",
    "epsilon: 1 sensitivity: 4 resolution: 0.5 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN",
]


def numeric(rule: str) -> Reader:
    return Reader(
        compiled(
            f"message M {{ double x = 1 [(dpmesh.v1.field).numeric = {{lower: 0 upper: 100 {rule}}}]; }}"
        ).M
    )


def released(reader: Reader, count: int) -> list[float]:
    payload = reader.plan.fields[0].payload
    draw = draw_function(payload.mechanism.draws)
    return [payload.grid.value(draw(0)) for _ in range(count)]


@pytest.fixture(scope="module", params=RULES)
def plan(request):
    return numeric(request.param).plan.fields[0]


def test_shares_are_unbiased_by_the_law(plan):
    """The weights turn the law of each bin into 1 for that bin and 0 for the others."""
    inverse = _inverse("x", plan.payload, EDGES)
    assert np.allclose(inverse.law.sum(axis=0), 1)
    assert inverse.law.min() >= -1e-12
    assert np.allclose(inverse.weights.T @ inverse.law, np.eye(4), atol=1e-6)


@pytest.mark.parametrize(
    "rule", ["epsilon: 4", "epsilon: 4 mechanism: PIECEWISE", "epsilon: 2 sensitivity: 1"]
)
def test_reports_tell_what_senders_held(rule):
    """Draws of the mechanism itself: noise of another epsilon is found out."""
    reader = numeric(rule)
    field = reader.plan.fields[0]
    grid, draw = field.payload.grid, draw_function(field.payload.mechanism.draws)
    held = np.concatenate([np.linspace(0, 20, 4500), np.linspace(50, 70, 3500), np.linspace(70, 99.9, 2000)])
    received = [grid.value(draw(grid.index(value))) for value in held.tolist()]
    found = reader.distribution("x", np.array(received), bins=EDGES, confidence=1 - 1e-7)
    assert found.n == 10_000
    for share, expected in zip(found.shares, HELD, strict=True):
        # A thousandth for the numbers on the edges.
        assert share.low - 1e-3 <= expected <= share.high + 1e-3
    assert reader.quantile("x", received, 0.9, bins=EDGES, confidence=1 - 1e-7).covers(85)
    assert found.below(-1).value == 0
    assert found.below(101).value == pytest.approx(1, abs=1e-6)


def test_the_interval_of_a_quantile_holds_numbers_at_any_place_of_their_bin():
    """All numbers are at one end of a bin, where interpolation puts few of them."""
    reader = numeric("epsilon: 8")
    field = reader.plan.fields[0]
    grid, draw = field.payload.grid, draw_function(field.payload.mechanism.draws)
    received = np.array([grid.value(draw(grid.index(56.0))) for _ in range(4000)])
    found = reader.distribution("x", received, bins=EDGES, confidence=1 - 1e-7)
    for q in (0.1, 0.5, 0.9):
        quantile = found.quantile(q)
        assert quantile.covers(56)
        assert {quantile.low, quantile.high} <= set(EDGES)
    assert found.quantile(0.9).value > 60


def test_parts_merge_and_tell_the_mean_too():
    reader = numeric("epsilon: 4 mechanism: DISCRETE_LAPLACE")
    values = np.arange(-20.0, 130.0, 0.5)
    whole = reader.accumulator("x", bins=4).add(values)
    parts = reader.accumulator("x", bins=4).add(values[40:])
    parts.merge(reader.accumulator("x", bins=4).add(values[:40].tolist()).to_dict())
    assert parts.to_dict() == whole.to_dict()
    assert parts.distribution().shares == reader.distribution("x", values, bins=4).shares
    assert parts.quantile(0.3) == reader.quantile("x", values, 0.3, bins=4)
    assert parts.mean() == reader.mean("x", values)
    with pytest.raises(EstimateError, match="another setting"):
        parts.merge(reader.accumulator("x", bins=5))
    with pytest.raises(EstimateError, match="give bins to"):
        reader.accumulator("x").add(values).distribution()


@pytest.mark.parametrize(
    ("rule", "least", "most"),
    [("epsilon: 1", 3, 6), ("epsilon: 8", 20, 20), ("epsilon: 2 mechanism: PIECEWISE", 10, 20)],
)
def test_the_usual_bins_are_those_that_are_told_apart(rule, least, most):
    reader = numeric(rule)
    found = reader.accumulator("x", bins="auto").to_dict()
    assert least <= len(found["setting"]["edges"]) - 1 <= most


@pytest.mark.parametrize(
    ("rule", "bins", "says"),
    [
        ("epsilon: 1 mechanism: DUCHI", 2, "two ends, which tell a mean and no distribution"),
        ("epsilon: 1", 20, "take fewer and wider ones"),
        ("epsilon: 1", 0, "from 1 to 200"),
        ("epsilon: 1", 201, "from 1 to 200"),
        ("epsilon: 1", [0.0], "edges that increase"),
        ("epsilon: 1", [0, 50, 50, 100], "edges that increase"),
        ("epsilon: 1", [0, math.nan, 100], "edges that increase"),
        ("epsilon: 1", [-math.inf, 50, 100], "edges that increase"),
        ("epsilon: 1", ["low", "high"], "edges that increase"),
        ("epsilon: 1", None, "no bins"),
        ("epsilon: 1", [0, 50, 90], "reach from 0 to 100"),
        ("epsilon: 1 sensitivity: 1 resolution: 10", [0, 11, 12, 100], "holds no point"),
    ],
)
def test_bins_that_can_not_be_known_are_refused(rule, bins, says):
    reader = numeric(rule)
    with pytest.raises(EstimateError, match=f"^x: .*{says}"):
        reader.accumulator("x", bins=bins).distribution()


def test_other_questions_are_refused():
    reader = numeric("epsilon: 2")
    with pytest.raises(EstimateError, match="no values"):
        reader.distribution("x", [])
    found = reader.distribution("x", released(reader, 3))
    for q in (0, 1, math.nan):
        with pytest.raises(ValueError, match="q must be"):
            found.quantile(q)


def test_the_table_of_the_documentation():
    """For 4 equal bins: a cumulative share is E[weights of an output], for a number anywhere, less 0 or 1."""
    page = (Path(__file__).parents[3] / "docs/estimates.md").read_text()
    edges, missing = tuple(np.linspace(0, 100, 5).tolist()), []
    for mechanism in ("AUTO", "PIECEWISE", "DISCRETE_LAPLACE"):
        for epsilon in (1, 2, 4, 8):
            reader = numeric(f"epsilon: {epsilon} mechanism: {mechanism}")
            payload, inverse = (
                reader.plan.fields[0].payload,
                _inverse("x", reader.plan.fields[0].payload, edges),
            )
            held = np.unique(np.linspace(0, payload.grid.size, 2001).astype(np.int64)).astype(np.float64)
            law = cumulative(payload.mechanism, payload.grid.size)(held, inverse.last)
            told = np.diff(law, axis=0, prepend=0.0, append=1.0).T @ inverse.weights
            bin_of = np.searchsorted(edges, held * payload.grid.step, side="right") - 1
            below = np.triu(np.ones((4, 3)))
            worst = np.abs(told @ below - below[np.minimum(bin_of, 3)]).max()
            reports = math.ceil((1.96 * inverse.deviation / 0.05) ** 2)
            bins = len(reader.accumulator("x", bins="auto").to_dict()["setting"]["edges"]) - 1
            row = f"| `{mechanism}` | {epsilon} | {reports:,} | {bins} | {worst:.2f} |"
            missing += [row] * (row not in page)
    assert missing == []


def test_times_have_a_distribution_read_from_messages():
    """Half of the visits at noon of the second day, which is the middle of a bin, and half at noon of the fifth."""
    types = compiled("""
message Visit {
  string unit = 1 [(dpmesh.v1.field).unit = {}];
  google.protobuf.Timestamp seen = 2 [(dpmesh.v1.field).time = {
    earliest: "2026-01-01T00:00:00Z" latest: "2026-01-07T00:00:00Z" largest_shift: {seconds: 3600} epsilon: 1}];
}""")
    reader = Reader(types.Visit)
    start, day = 1_767_225_600, 86_400
    visits = []
    for number in range(400):
        visit = types.Visit(unit="u")
        visit.seen.seconds = start + (1 + 3 * (number % 2)) * day + day // 2
        visits.append(reader.plan.protect(visit, lambda _unit, _epoch: bytes(16)))
    found = reader.distribution("seen", visits, bins=6, confidence=1 - 1e-7)
    assert found.edges[0] == start
    for share, expected in zip(found.shares, (0, 0.5, 0, 0, 0.5, 0), strict=True):
        assert share.covers(expected)
        assert share.margin < 0.2
    assert reader.quantile("seen", visits, 0.25, bins=6).covers(start + 1.5 * day)
    assert (
        reader.accumulator("seen", bins=6).add(visits).distribution().shares
        == reader.distribution("seen", visits, bins=6).shares
    )


def test_what_absent_values_add_is_taken_out_exactly():
    """From the expected counts of 10^12 places, of which 30 % hold a value: spread evenly in two of four bins."""
    types = compiled(
        """message M { string id = 1 [(dpmesh.v1.field).unit = {}];
        optional double x = 2 [(dpmesh.v1.field).numeric = {lower: -10 upper: 30 epsilon: 4}]; }"""
    )
    reader = Reader(types.M)
    field, bins = reader.plan.fields[-1], (-10, 0, 10, 20, 30)
    found = distribution.tally(field, bins)
    inverse = _inverse(field.path, field.payload, tuple(map(float, bins)))
    truth = np.array([0.25, 0.0, 0.75, 0.0])
    grid, law = field.payload.grid, cumulative(field.payload.mechanism, field.payload.grid.size)
    absent = np.diff(law(np.array([grid.index(0.0)]), inverse.last)[:, 0], prepend=0, append=1)
    counts = np.rint(1e12 * (0.3 * inverse.law @ truth + 0.7 * absent)).astype(int).tolist()
    figures = {**found.nothing(), "n": [sum(counts)], "received": counts}
    shares = distribution.distribution_of(field, figures, found.setting, 0.95, held=0.3).shares
    assert [share.value for share in shares] == pytest.approx(truth, abs=1e-8)


def test_a_distribution_of_held_values():
    """3,000 places, every third of which holds 20: intervals that fail once in 10^9."""
    types = compiled(
        """message M { string id = 1 [(dpmesh.v1.field).unit = {}];
        optional double x = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 30 epsilon: 6}]; }"""
    )
    reader = Reader(types.M)
    held = [types.M(id="u", x=20) if number % 3 == 0 else types.M(id="u") for number in range(3000)]
    messages = [reader.plan.protect(message, lambda *_: bytes(16)) for message in held]
    edges = (0, 10, 18, 22, 30)
    places = reader.distribution("x", messages, bins=edges, confidence=1 - 1e-9)
    assert places.shares[0].per_place
    assert places.shares[0].value > 0.5
    share = Estimate(1 / 3, 0.3, 0.36, 100, 1 - 1e-10)
    for known in (1 / 3, share):
        found = reader.distribution("x", messages, bins=edges, held=known, confidence=1 - 1e-9)
        assert not found.shares[0].per_place
        assert found.confidence == found.shares[0].confidence == 1 - 1e-9
        assert found.shares[2].covers(1)
        assert found.shares[0].covers(0)
        assert found.shares[2].low > 0.5
        assert found.below(18).covers(0)
        assert 18 <= found.quantile(0.5).value <= 22
    accumulator = reader.accumulator("x", bins=edges).add(messages)
    assert accumulator.quantile(0.5, held=1 / 3) == reader.quantile(
        "x", messages, 0.5, bins=edges, held=1 / 3
    )
    with pytest.raises(EstimateError, match="held is the share"):
        accumulator.distribution(held=2)
