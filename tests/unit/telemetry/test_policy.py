"""Telemetry of policies that are followed: what is in force, and what happened to it."""

from __future__ import annotations

import dpmesh
from tests.support.mutual_tls import until
from tests.support.protos import compiled

from .conftest import read

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
    double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}]; }"""
)


def replace(file, epoch):
    other = file.with_suffix(".new")
    other.write_text(f"epoch: {epoch}\n...\n")
    other.replace(file)


async def test_spans_and_gauges_tell_epoch_and_state(tmp_path, listening):
    listening.trace()
    reader = listening.meter()
    file = tmp_path / "policy.yaml"
    replace(file, 3)
    followed = {"source": str(file), "poll": "0.1s", "cache": str(tmp_path / "cache")}
    async with dpmesh.open({"ledger": {"url": "memory:"}, "policy": followed}) as mesh:
        await mesh.release(TYPES.Report(id="a", a=1))
        replace(file, 4)
        await until(lambda: mesh.policy.document.epoch == 4)
        replace(file, 2)
        await until(lambda: mesh.policy_status.refused)
        stream = mesh.stream(method="/a.B/C")
        await stream.release(TYPES.Report(id="a", a=1))
        stream.close()
        file.unlink()
        await until(lambda: mesh.policy_status.state == "stale")
        found = read(reader)
        values = [found[f"dpmesh.policy.{name}"][()].value for name in ("state", "epoch")]
        assert values == [1, 4]
        assert 0 < found["dpmesh.policy.age"][()].value < 60
    assert "dpmesh.policy.state" not in read(reader)
    spans = listening.spans.get_finished_spans()
    releases = [span.attributes for span in spans if span.name == "dpmesh.release"]
    epochs = [(each["dpmesh.policy.epoch"], each["dpmesh.policy.state"]) for each in releases]
    assert epochs == [(3, "fresh"), (4, "fresh")]
    happened = [span for span in spans if span.name == "dpmesh.policy"]
    assert all(span.parent is None for span in happened)
    events = [
        tuple(span.attributes[f"dpmesh.policy.{name}"] for name in ("event", "epoch")) for span in happened
    ]
    assert events[-3:] == [("taken", 4), ("refused", 2), ("stale", 4)]
