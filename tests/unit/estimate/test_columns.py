"""Columns of numpy and Arrow give what their values give one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from dpmesh.estimate import EstimateError, Reader
from tests.support.protos import compiled

REPORT = """
message Report {
  option (dpmesh.v1.message) = {epsilon: 5.0};
  enum Color { RED = 0; GREEN = 5; BLUE = 7; }
  string unit = 1 [(dpmesh.v1.field).unit = {}];
  double speed = 2 [(dpmesh.v1.field).numeric = {lower: -50 upper: 50 mechanism: DISCRETE_LAPLACE}];
  Color color = 3 [(dpmesh.v1.field).categorical = {}];
  repeated float step = 4 [(dpmesh.v1.field).vector = {dimension: 2 linf_norm: 1}];
}
"""
SPEEDS = [float(number % 90) for number in range(20_000)]
COLORS = [0, 5, 7, 7] * 30


class Series:
    """What pandas and polars have in common."""

    def __init__(self, values):
        self.values = np.array(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(compiled(REPORT).Report)


@pytest.mark.parametrize(
    "column",
    [
        np.array(SPEEDS),
        np.array(SPEEDS, np.float32),
        np.array(SPEEDS, np.int16),
        np.array(SPEEDS, object),
        np.repeat(SPEEDS, 2)[::2],
        np.ma.MaskedArray([*SPEEDS, 3.0], [False] * len(SPEEDS) + [True]),
        Series(SPEEDS),
        pa.array(SPEEDS),
        pa.array([None, *SPEEDS, None]),
        pa.array(map(int, SPEEDS), pa.int32()),
        pa.chunked_array([pa.array(SPEEDS[:10]), pa.array([], pa.float64()), pa.array([None, *SPEEDS[10:]])]),
        pa.table({"speed": SPEEDS})["speed"],
    ],
    ids=lambda column: type(column).__name__,
)
def test_numbers(reader, column):
    assert reader.mean("speed", column) == reader.mean("speed", SPEEDS)
    assert (
        reader.accumulator("speed").add(column).to_dict() == reader.accumulator("speed").add(SPEEDS).to_dict()
    )


NAMES = [{0: "RED", 5: "GREEN", 7: "BLUE"}[color] for color in COLORS]


@pytest.mark.parametrize(
    "column",
    [
        np.array(COLORS),
        np.array(COLORS, np.uint8),
        np.array(COLORS, object),
        np.array(NAMES),
        pa.array(COLORS, pa.int32()),
        pa.array(NAMES),
        pa.array([*NAMES, None]),
        pa.array(NAMES).dictionary_encode(),
        pa.chunked_array([COLORS[:7], COLORS[7:]]),
    ],
    ids=lambda column: f"{type(column).__name__}-{getattr(column, 'dtype', '')}",
)
def test_categories(reader, column):
    assert reader.frequencies("color", column) == reader.frequencies("color", COLORS)


def test_vectors(reader):
    mechanism = reader.plan.fields[-1].kind.reading(reader.plan.fields[-1])
    vector = mechanism.release([0.5, -0.5])
    expected = reader.mean_vector("step", [vector] * 70)
    for column in (
        np.array([vector] * 70, np.float32),
        pa.array([vector] * 70),
        pa.array([None] + [vector] * 70),
    ):
        found = reader.mean_vector("step", column)
        assert found.n == 70
        assert np.array_equal(found.values, expected.values)
        assert np.array_equal(found.low, expected.low)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (np.array([1.0, np.nan]), "outside of"),
        (np.array([1.0, 471.13]), "none of its policy's outputs"),
        (np.array([[1.0]]), "dimension"),
        (np.array(4711.0), "dimension"),
        (np.float64(4711), "dimension"),
        (np.array(["4711"]), "something else than numbers"),
        (np.array([4711], "datetime64[s]"), "something else than numbers"),
        (np.array([4711 + 1j]), "something else than numbers"),
        (np.array([1.0, None]), "not a number"),
        (np.array([]), "no values"),
        (pa.array(["4711 km"]), "not a number"),
        (pa.array([None], pa.float64()), "no values"),
    ],
)
def test_other_columns_are_refused(reader, column, says):
    with pytest.raises(EstimateError, match=f"^speed: .*{says}") as caught:
        reader.mean("speed", column)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "column", [np.array([4711]), np.array(["4711"]), pa.array(["4711"]), np.array([0.5])]
)
def test_other_categories_are_refused(reader, column):
    with pytest.raises(EstimateError, match="^color: .*not one of its categories"):
        reader.frequencies("color", column)


def test_columns_of_vectors_have_their_length(reader):
    with pytest.raises(EstimateError, match="has not 2 coordinates"):
        reader.mean_vector("step", np.zeros((4, 3)))
    with pytest.raises(EstimateError, match="not a vector"):
        reader.mean_vector("step", np.zeros(4))


TIMES = """
message Report {
  string unit = 1 [(dpmesh.v1.field).unit = {}];
  google.protobuf.Timestamp at = 2 [(dpmesh.v1.field).time = {
    earliest: "2026-01-01T00:00:00Z" latest: "2026-01-02T00:00:00Z" resolution: {seconds: 60} epsilon: 4}];
  int64 minutes = 3 [(dpmesh.v1.field).time = {
    earliest: "0s" latest: "3600s" step: MINUTE epsilon: 4}];
}
"""


@pytest.fixture(scope="module")
def times():
    types = compiled(TIMES)
    reader = Reader(types.Report)
    report = types.Report(unit="u", minutes=20)
    report.at.FromJsonString("2026-01-01T08:00:00Z")
    return reader, [reader.plan.protect(report, lambda *_: bytes(16)) for _ in range(50)]


def test_points_in_time(times):
    reader, messages = times
    expected = reader.mean("at", messages)
    seconds = [message.at.seconds for message in messages]
    dates = [datetime.fromtimestamp(each, UTC) for each in seconds]
    column = np.array(seconds, "datetime64[s]")
    for values in (
        dates,
        np.array(dates, object),
        column,
        column.astype("datetime64[ns]"),
        column.astype("datetime64[5s]") if all(each % 5 == 0 for each in seconds) else column,
        pa.array(dates, pa.timestamp("us", "UTC")),
        pa.array([None, *dates], pa.timestamp("ms")),
    ):
        assert reader.mean("at", values) == expected
    assert (
        reader.distribution("at", column, bins=2).shares == reader.distribution("at", messages, bins=2).shares
    )


def test_lengths_of_time_in_the_steps_of_an_integer(times):
    reader, messages = times
    minutes = [message.minutes for message in messages]
    expected = reader.mean("minutes", messages)
    assert reader.mean("minutes", np.array(minutes, "timedelta64[m]").astype("timedelta64[ms]")) == expected
    assert reader.mean("minutes", [timedelta(minutes=each) for each in minutes]) == expected
    assert reader.mean("minutes", minutes) == expected


def test_times_of_another_kind_are_refused(reader, times):
    other, _ = times
    lengths, dates = np.array([1], "timedelta64[s]"), np.array([1], "datetime64[s]")
    for asked, path, values, says in [
        (other, "at", lengths, "something else than points in time"),
        (other, "minutes", dates, "something else than lengths of time"),
        (other, "at", np.array(["NaT"], "datetime64[s]"), "lies outside"),
        (
            other,
            "at",
            [datetime(2026, 1, 1)],
            "is not a number; pass numbers, datetimes with a time zone, or",
        ),
        (
            other,
            "at",
            [timedelta(seconds=3)],
            "is not a number; pass numbers, datetimes with a time zone, or",
        ),
        (other, "minutes", [datetime(2026, 1, 1)], "is not a number; pass numbers, timedeltas, or"),
        (reader, "speed", ["secret"], "is not a number; pass numbers, or"),
        (reader, "speed", dates, "something else than numbers"),
    ]:
        with pytest.raises(EstimateError, match=f"{path}: .*{says}"):
            asked.mean(path, values)
