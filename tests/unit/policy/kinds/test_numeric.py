"""Numbers: which mechanism a rule gets, what is refused, and the errors that docs/kinds/numeric.md promises."""

import math
import re
from pathlib import Path

import pytest

import dpmesh
from dpmesh.errors import AnnotationError
from dpmesh.estimate import Reader
from dpmesh.policy import Policy
from tests import support
from tests.support.protos import compiled

PAGE = (Path(support.__file__).parents[2] / "docs/kinds/numeric.md").read_text()
NUM = "(dpmesh.v1.field).numeric"
HALF = 50.0


def planned(rule, kind="double"):
    types = compiled(f"message M {{ {kind} x = 1 [{NUM} = {{{rule}}}]; }}")
    (field,) = Policy().plan(types.M.DESCRIPTOR).fields
    return field


def refusal(rule, kind="double"):
    types = compiled(f"message M {{ {kind} x = 1 [{NUM} = {{{rule}}}]; }}")
    with pytest.raises(AnnotationError) as caught:
        Policy().plan(types.M.DESCRIPTOR)
    return str(caught.value)


def test_the_pages_table_of_errors(vectors):
    least = {case["epsilon"]: case["variance"] for case in vectors("numeric_optimum.json")["cases"]}
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.| ,]+) \|$", PAGE, re.MULTILINE)
    assert [float(epsilon) for epsilon, _ in rows] == list(least)
    for text, rest in rows:
        found = [float(cell.replace(",", "")) for cell in rest.split(" | ")]
        rule = f"lower: 0 upper: 100 epsilon: {text}"
        mechanisms = ("AUTO", "HYBRID", "DISCRETE_LAPLACE")
        auto, hybrid, laplace = (
            planned(f"{rule} mechanism: {name}").payload.deviation for name in mechanisms
        )
        best = math.sqrt(least[float(text)]) * HALF
        assert found[:4] == [round(error, 1) for error in (auto, best, hybrid, laplace)]
        assert found[4] == int((1.96 * auto) ** 2)
        in_range = planned(f"{rule} output: IN_RANGE")
        assert in_range.payload.deviation == pytest.approx(auto, rel=1e-3)
        assert in_range.payload.outputs == (0, 100)


@pytest.mark.parametrize("epsilon", [0.5, 1, 2, 8, 12])
@pytest.mark.parametrize("output", ["UNBIASED", "IN_RANGE"])
def test_auto_takes_optimized_piecewise_for_a_units_own_number(epsilon, output):
    rule = f"lower: -3 upper: 7 epsilon: {epsilon} output: {output}"
    field = planned(rule)
    assert field.mechanism_name == "optimized_piecewise"
    chosen = planned(f"{rule} mechanism: OPTIMIZED_PIECEWISE")
    assert field.payload.mechanism is chosen.payload.mechanism


def test_the_page_says_how_many_points_leave_and_from_which_epsilon_on():
    rule = "lower: 0 upper: 100 mechanism: OPTIMIZED_PIECEWISE epsilon:"
    one, eight = (len(planned(f"{rule} {epsilon}").payload.mechanism.outputs) for epsilon in (1, 8))
    assert f"({one} at an epsilon of 1, {eight} at 8)" in PAGE
    found = [
        planned(f"lower: 0 upper: 100 epsilon: {epsilon}").mechanism_name for epsilon in (0.18, 0.19, 12)
    ]
    assert found == ["duchi", "optimized_piecewise", "optimized_piecewise"]
    assert "for an epsilon below 0.19 or above 12" in PAGE


def test_auto_takes_laplace_for_aggregates():
    assert planned("lower: 0 upper: 100 epsilon: 1 sensitivity: 1").mechanism_name == "discrete_laplace"
    assert planned("lower: 0 upper: 100 epsilon: 0.1").mechanism_name == "duchi"


@pytest.mark.parametrize("upper", [1000, 1e6, 1e9])
@pytest.mark.parametrize("output", ["UNBIASED", "IN_RANGE"])
@pytest.mark.parametrize(("kind", "most"), [("int64", 1.36), ("double", 1.46)])
def test_the_default_grid_adds_little_to_the_error_of_an_aggregate(upper, output, kind, most):
    """A step of a ten-thousandth of the range would hide 100 in a count up to a million, where one unit adds 1."""
    field = planned(f"lower: 0 upper: {upper} epsilon: 1 sensitivity: 1 output: {output}", kind)
    assert field.payload.deviation < most


def test_the_default_grid_of_an_aggregate_stays_within_its_limit():
    assert planned("lower: 0 upper: 1e300 epsilon: 1 sensitivity: 1e-300").payload.grid.size <= 2**40


def test_optimized_piecewise_is_refused_for_aggregates():
    told = refusal("lower: 0 upper: 100 epsilon: 1 sensitivity: 1 mechanism: OPTIMIZED_PIECEWISE")
    assert "a unit's own value" in told


@pytest.mark.parametrize("mechanism", ["HYBRID", "PIECEWISE"])
def test_mechanisms_without_outputs_in_range_name_the_one_that_has_them(mechanism):
    told = refusal(f"lower: 0 upper: 100 epsilon: 1 output: IN_RANGE mechanism: {mechanism}")
    assert "OPTIMIZED_PIECEWISE" in told


def test_unsigned_numbers_need_outputs_in_range():
    rule = "lower: 0 upper: 100 epsilon: 1 mechanism: OPTIMIZED_PIECEWISE"
    assert "IN_RANGE" in refusal(rule, "uint32")
    assert planned(f"{rule} output: IN_RANGE", "uint32").payload.outputs == (0, 100)


@pytest.mark.parametrize("kind", ["int32", "float"])
async def test_a_receiver_reads_numbers_in_range(kind):
    """The mean of 4,000 outputs lies within 6 standard errors, which one in 5e8 misses; their plain mean does not."""
    rule = "lower: 0 upper: 100 epsilon: 2 output: IN_RANGE"
    types = compiled(
        f"message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; {kind} x = 2 [{NUM} = {{{rule}}}]; }}"
    )
    config = {
        "ledger": {"url": "memory:"},
        "budget": [{"name": "b", "epsilon": 1e5, "accounting": "pure", "window": "lifetime"}],
    }
    async with dpmesh.open(config) as mesh:
        values = [(await mesh.release(types.M(id="u", x=5))).message.x for _ in range(4000)]
    assert all(0 <= value <= 100 for value in values)
    found, error = Reader(types.M).mean("x", values), 47.4 / math.sqrt(4000)
    assert abs(found.value - 5) < 6 * error
    assert abs(sum(values) / 4000 - 5) > 20 * error
    assert 0.8 < found.margin / (1.96 * error) < 1.1
