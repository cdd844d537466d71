"""Pseudonyms through real RPCs: who receives them can join his own messages, and not those of another consumer."""

from __future__ import annotations

from stations import stations_pb2 as pb
from stations.rig import reading, stream
from test_quota import OTHER, PARTNER, Fleet

from dpmesh.policy.overlay_file import parse

PACKAGE = "dpmesh.test.stations.v1"
# The unit and another id as pseudonyms; `note` and `payload` hold one id, and join on purpose.
FIELDS = {
    "station": {"unit": {}},
    "note": {"pseudonym": {"namespace": "trips"}},
    "payload": {"pseudonym": {"namespace": "trips"}},
}
POLICY = parse({"fields": {f"{PACKAGE}.Reading.{name}": rules for name, rules in FIELDS.items()}}, "policy")


def message():
    return reading("S1", note="T1", payload=b"T1")


def ids(received: pb.Reading) -> tuple[str, str]:
    assert received.note == received.payload.hex(), "one namespace did not join"
    return received.station, received.note


async def test_each_client_of_a_server_gets_pseudonyms_of_its_own(open_mesh, serve, connect):
    async def ask(request, context):
        return message()

    async def watch(request, context):
        yield message()
        yield message()

    mesh = await open_mesh(policy=POLICY)  # No quota asks who the clients are.
    fleet = await Fleet(serve, connect).start(mesh, {"Ask": ask, "Watch": watch})
    seen = []
    for consumer in (PARTNER, OTHER):
        stub = await fleet.named(consumer)
        found = {ids(await stub.Ask(pb.Plain())) for _ in range(2)}
        found |= {ids(each) async for each in stub.Watch(pb.Plain())}
        seen.append(found)
        again = await fleet.named(consumer)
        assert {ids(await again.Ask(pb.Plain()))} == found, (
            "a new connection or certificate made new pseudonyms"
        )
    assert [len(found) for found in seen] == [1, 1], "a consumer can't join what it received"
    assert len({pseudonym for found in seen for pair in found for pseudonym in pair}) == 4


async def test_a_client_that_names_its_receivers_gives_each_pseudonyms_of_its_own(open_mesh, serve, connect):
    mesh = await open_mesh(policy=POLICY)
    got = []

    async def report(request, context):
        got.append(ids(request))
        return pb.Plain()

    async def report_all(requests, context):
        async for request in requests:
            got.append(ids(request))
        return pb.Plain()

    target = await serve(handlers={"Report": report, "ReportAll": report_all})
    for consumer in ("billing", "weather", "billing", ""):
        stub = await connect(target, mesh, consumer=consumer)
        await stub.Report(message())
        await stub.ReportAll(stream(message()))
    assert got[0::2] == got[1::2], "streams and single requests can't be joined"
    billing, weather, again, nobody = got[0::2]
    assert billing == again
    assert len({*billing, *weather, *nobody}) == 6
