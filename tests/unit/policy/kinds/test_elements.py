"""The elements of a repeated field share its epsilon, whatever its kind: each has the law of a single field of its part."""

import pytest

from dpmesh.policy import Policy
from tests.support.places import SWITZERLAND
from tests.support.protos import compiled

TIME = 'earliest: "2026-01-01T00:00:00Z" latest: "2026-01-31T00:00:00Z"'
KINDS = {
    "numeric": ("double", "lower: 0 upper: 100"),
    "categorical": ("bool", ""),
    "a category of a list": ("string", 'domain: ["a", "b", "c"]'),
    "a report of a category": ("dpmesh.v1.CategoryReport", ""),
    "time": ("google.protobuf.Timestamp", TIME),
    "time within a shift": ("google.protobuf.Timestamp", f"{TIME} largest_shift: {{seconds: 7200}}"),
    "location by a disk": ("Point", SWITZERLAND),
    "location by hexagons": ("Point", f"mechanism: HEXAGONAL_GEOMETRIC {SWITZERLAND}"),
    "location by distance": ("Point", f"metric: GEO radius_km: 5 {SWITZERLAND}"),
}


def mechanism_of(declared, name, inside, options=""):
    kind = name.partition(" ")[0] if name.startswith(("time", "location", "numeric")) else "categorical"
    types = compiled(
        f"""message Point {{ double latitude = 1; double longitude = 2; }}
        message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
          {declared} x = 2 [(dpmesh.v1.field) = {{{kind}: {{{inside}}} {options}}}]; }}"""
    )
    (field,) = (entry for entry in Policy().plan(types.M.DESCRIPTOR).fields if entry.mechanism_name)
    payload = getattr(field.payload, "law", getattr(field.payload, "number", field.payload))
    return field, payload.mechanism


@pytest.mark.parametrize("name", KINDS)
def test_each_of_four_elements_has_the_law_of_a_quarter(name):
    declared, inside = KINDS[name]
    one, expected = mechanism_of(declared, name, f"{inside} epsilon: 0.5")
    four, found = mechanism_of(f"repeated {declared}", name, f"{inside} epsilon: 2", "max_items: 4")
    assert found.draws.key == expected.draws.key
    assert four.cost == one.cost.times(4)
