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
