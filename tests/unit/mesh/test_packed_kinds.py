"""Anys that pack messages of every kind that replaces a message or a list, by annotation and by a path."""

import pytest
from google.protobuf import any_pb2

from dpmesh.policy import Policy
from dpmesh.policy.overlay_file import parse
from tests.support.meshes import assembled
from tests.support.protos import compiled

TYPES = compiled(
    """message Place { double latitude = 1; double longitude = 2; string note = 3; }
    message Fix { Place at = 1 [(dpmesh.v1.field).location =
        {epsilon: 1 min_latitude: 45 max_latitude: 48 min_longitude: 6 max_longitude: 10}]; }
    message Embedding { repeated float x = 1 [(dpmesh.v1.field).vector = {l2_norm: 1 dimension: 4 epsilon: 2}]; }
    message Tags { repeated string tag = 1
        [(dpmesh.v1.field).categorical = {epsilon: 1 domain: ["a", "b", "c"]}, (dpmesh.v1.field).max_items = 2]; }
    message Money { int64 units = 1; string secret = 2; }
    message Order { Money price = 1; Money tip = 2; }
    message Envelope { google.protobuf.Any box = 1; }"""
)
PATHS = {
    "fields": {
        f"{TYPES.package}.Order.price.units": {"numeric": {"lower": 0, "upper": 9, "epsilon": 3}},
        f"{TYPES.package}.Order.price.secret": {"suppress": {}},
    }
}
BUDGET = {"name": "all", "key": "global", "epsilon": 100, "accounting": "pure", "window": "24h"}
MESSAGES = {
    "location": (TYPES.Fix(at={"latitude": 46, "longitude": 8, "note": "raw-marker"}), 1),
    "vector": (TYPES.Embedding(x=[1, 0, 0, 0]), 2),
    "categorical": (TYPES.Tags(tag=["a", "raw-marker", "b", "b"]), 1),
    "by path": (TYPES.Order(price={"units": 5, "secret": "raw-marker"}, tip={"units": 7}), 3),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", MESSAGES)
async def test_what_an_any_packs_leaves_as_it_would_by_itself(kind, nested):
    message, epsilon = MESSAGES[kind]
    box = any_pb2.Any()
    box.Pack(message)
    carrier = TYPES.Envelope(box=box) if nested else box
    overlays = parse(PATHS, "test")
    async with assembled({"ledger": {"url": "memory:"}, "budget": [BUDGET]}, policy=overlays) as mesh:
        left = (await mesh.release(carrier)).message
        charged = sum(amount for _, _, amount in mesh.ledger.bills[-1]) / 1e9
    inner = type(message)()
    assert (left.box if nested else left).Unpack(inner)
    assert b"raw-marker" not in left.SerializeToString()
    # What costs share a grid of their own, so a part of 1e-9 may be lost.
    plan = Policy(overlays).plan(message.DESCRIPTOR)
    assert charged == pytest.approx(epsilon, abs=1e-6)
    assert charged >= plan.cost.epsilon / 1e9 - 1e-9
    if kind == "location":
        assert 44 < inner.at.latitude < 49
    elif kind == "vector":
        assert len(inner.x) == 4
        assert list(inner.x) != [1, 0, 0, 0]
    elif kind == "by path":
        assert inner.tip.units == 7
