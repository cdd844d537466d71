"""docs/kinds/categorical.md: its example compiles, and its table is what the mechanisms give."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import pytest

from dpmesh.noise import categorical
from dpmesh.policy import Policy
from tests.support.protos import compiled

PAGE = (Path(__file__).resolve().parents[4] / "docs/kinds/categorical.md").read_text()
ROWS = re.findall(r"^\| ([\d.]+) \| (.*) \|$", PAGE, flags=re.MULTILINE)


def test_the_example_is_three_fields_with_noise():
    (example,) = re.findall(r"```proto\n(.*?)```", PAGE, flags=re.DOTALL)
    enums = "enum Carrier { UA = 0; B6 = 1; } enum Airport { EWR = 0; JFK = 1; LGA = 2; }"
    plan = Policy().plan(compiled(f"{enums} message Visit {{ {example} }}").Visit.DESCRIPTOR)
    assert [field.mechanism_name for field in plan.fields] == [
        "k_randomized_response",
        "subset_selection",
        "optimized_local_hashing",
    ]


@pytest.mark.parametrize(("epsilon", "cells"), ROWS)
def test_the_table_is_what_the_mechanisms_give(epsilon, cells):
    def shown(mechanism):
        return f"{100 * math.sqrt(mechanism.variance() / 10_000):.2f}"

    exact, expected = Fraction(epsilon), []
    for k in (2, 4, 16, 100, 1000):
        subset = categorical.make_subset(k, exact)
        expected.append(f"{shown(categorical.make(k, exact))} / {shown(subset)} ({subset.size})")
    hashing = categorical.make_hashing(exact)
    assert cells.split(" | ") == [*expected, f"{shown(hashing)} ({hashing.size})"]


def test_the_table_has_four_rows():
    assert len(ROWS) == 4


def test_up_to_how_many_values_a_plain_field_is_as_good():
    values = range(2, 200)
    for epsilon in (Fraction(1, 2), Fraction(1), Fraction(2), Fraction(4)):
        plain = {k: categorical.make(k, epsilon).variance() for k in values}
        subset = [k for k in values if categorical.make_subset(k, epsilon).size == 1]
        report = [k for k in values if plain[k] <= categorical.make_hashing(epsilon).variance()]
        assert subset[-1] == len(subset) + 1 == math.floor(2 * math.exp(epsilon) + 1)
        assert abs(report[-1] - (3 * math.exp(epsilon) + 2)) < 1
    thousand = (
        categorical.make(1000, Fraction(1)).variance() / categorical.make_subset(1000, Fraction(1)).variance()
    )
    assert f"{thousand:.0f} times fewer" in PAGE
    assert "2E + 1 values, which are 6 at epsilon 1" in PAGE
    assert "3E + 2, which are 10" in PAGE
