"""Quotas: each client has its own under the unit's one budget, by the identity that it proves and no other."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from ipaddress import ip_address

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from stations import rig, stations_pb2_grpc
from stations import stations_pb2 as pb
from stations.rig import is_protected, reading, stream

from dpmesh.identity import LocalSource, RotatingIdentity
from dpmesh.ledger.budget import consumer_key
from dpmesh_grpc import rotating_channel, rotating_server_credentials
from tests.support.certificates import Leaf, Root, new_key, private_pem
from tests.support.mutual_tls import DOMAIN, authority, until

PARTNER, OTHER = "spiffe://partner.example/analytics", "spiffe://partner.example/billing"
QUOTA = {"name": "each", "under": "station"}


def quotas(epsilon, **more):
    return {"quota": [{**QUOTA, "epsilon": epsilon, **more}]}


def sources():
    """Handlers of every kind whose responses are protected."""

    async def ask(request, context):
        return reading()

    async def watch(request, context):
        yield reading()
        yield reading()

    async def write(requests, context):
        async for _ in requests:
            await context.write(reading())

    def ask_all(requests, context):
        return reading()

    return {"Ask": ask, "Watch": watch, "Chat": write, "AskAll": ask_all}


def current(root):
    """A test root that is valid today."""
    now = time.time()
    root.certificate = root._sign(root.name, root.key, now - 86400, now + 86400, [], authority=True)
    root.pem = root.certificate.public_bytes(Encoding.PEM)
    return root


class Fleet:
    """A server behind mutual TLS, and channels of clients that prove who they are."""

    def __init__(self, serve, connect):
        self.serve, self.connect = serve, connect
        self.authority = authority()
        self.others = current(Root())

    async def start(self, mesh, handlers=None):
        server = await LocalSource(self.authority, server=True).fetch()
        credentials = grpc.ssl_server_credentials(
            [(server.key, server.certificates)],
            self.authority.trust_bundle + self.others.pem,
            require_client_auth=True,
        )
        self.target = await self.serve(mesh=mesh, handlers=handlers or sources(), credentials=credentials)
        return self

    async def client(self, identity):
        credentials = grpc.ssl_channel_credentials(
            self.authority.trust_bundle, identity.key, identity.certificates
        )
        options = (("grpc.ssl_target_name_override", DOMAIN), ("grpc.use_local_subchannel_pool", 1))
        return await self.connect(self.target, credentials=credentials, options=options)

    async def named(self, *uris):
        """A client whose certificate has these URIs."""
        return await self.client(self.others.leaf(uris, now=time.time()))

    async def having(self, *names, common=""):
        """A client whose certificate has these alternative names, and this common name."""
        key, now = new_key(), time.time()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])
        signed = self.others._sign(subject, key, now - 300, now + 1800, names, authority=False)
        return await self.client(Leaf(signed.public_bytes(Encoding.PEM), private_pem(key), self.others.pem))

    async def rotated(self):
        """A client with the next identity of dpmesh's own authority."""
        return await self.client(await LocalSource(self.authority).fetch())


@pytest.fixture
def fleet(serve, connect):
    return Fleet(serve, connect)


async def ask(stub):
    """One unary RPC: "ok", or the budget that refused it."""
    try:
        response = await stub.Ask(pb.Plain())
    except grpc.aio.AioRpcError as error:
        return refused(error)
    assert is_protected(response)
    return "ok"


def refused(error):
    found = rig.status(error)
    assert (found.code, found.info.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "PRIVACY_BUDGET_EXHAUSTED",
    )
    assert "spiffe" not in f"{found.text} {found.info}"
    return found.info.metadata["budget"]


async def spent(mesh):
    """What was charged, by budget; slices that are not used are returned first."""
    await mesh.ledger.close()
    await mesh.ledger.open()
    found = {}
    for account in await mesh.ledger.accounts():
        found.setdefault(account.budget, []).append(account.spent / 1e9)
    return {name: sorted(amounts) for name, amounts in found.items()}


async def test_two_clients_have_quotas_of_their_own_under_one_budget(open_mesh, fleet):
    mesh = await open_mesh(epsilon=3.0, **quotas(2.0))
    await fleet.start(mesh)
    one, two = await fleet.named(PARTNER), await fleet.named(OTHER)
    assert [await ask(one) for _ in range(3)] == ["ok", "ok", "each"]
    assert [await ask(two) for _ in range(3)] == ["ok", "station", "station"]
    assert await spent(mesh) == {"station": [3.0], "each": [1.0, 2.0]}


async def test_a_new_connection_or_certificate_of_the_same_name_refills_nothing(open_mesh, fleet):
    mesh = await open_mesh(**quotas(2.0))
    await fleet.start(mesh)
    assert [await ask(await fleet.named(PARTNER)) for _ in range(4)] == ["ok", "ok", "each", "each"]


async def test_a_refused_quota_leaves_the_budget_uncharged(open_mesh, fleet):
    mesh = await open_mesh(epsilon=5.0, **quotas(2.0))
    await fleet.start(mesh)
    one, two = await fleet.named(PARTNER), await fleet.named(OTHER)
    assert Counter([await ask(one) for _ in range(9)]) == {"ok": 2, "each": 7}
    assert [await ask(two) for _ in range(3)] == ["ok", "ok", "each"]
    assert await spent(mesh) == {"station": [4.0], "each": [2.0, 2.0]}


async def test_rotating_refills_nothing(open_mesh, fleet):
    mesh = await open_mesh(**quotas(3.0))
    await fleet.start(mesh)
    assert [await ask(await fleet.rotated()) for _ in range(5)] == ["ok"] * 3 + ["each"] * 2
    assert await ask(await fleet.named(PARTNER)) == "ok"


@pytest.mark.parametrize(
    "consumers", [[], [f"spiffe://{DOMAIN}/*"], [f"spiffe://{DOMAIN}/analytics/*"], [f"spiffe://{DOMAIN}"]]
)
async def test_a_rotating_channel_has_one_quota_all_its_life(open_mesh, fleet, serve, stack, consumers):
    chosen = {"consumers": consumers} if consumers else {}
    mesh = await open_mesh(**quotas(3.0, **chosen))
    ours = await stack.enter_async_context(RotatingIdentity(LocalSource(fleet.authority, server=True)))
    theirs = await stack.enter_async_context(RotatingIdentity(LocalSource(fleet.authority)))
    credentials = rotating_server_credentials(ours)
    target = await serve(mesh=mesh, handlers=sources(), credentials=credentials)
    channel = await stack.enter_async_context(rotating_channel(target, theirs))
    stub = stations_pb2_grpc.StationsStub(channel)
    answers = []
    for _ in range(5):
        answers.append(await ask(stub))
        before = channel._in_force
        await theirs.renew("test")
        await until(lambda before=before: channel._in_force is not before)
    assert answers == ["ok"] * 3 + ["each"] * 2


async def test_clients_that_are_not_authenticated_share_one_quota(open_mesh, serve, connect):
    mesh = await open_mesh(**quotas(3.0))
    target = await serve(mesh=mesh, handlers=sources())
    assert [await ask(await connect(target)) for _ in range(5)] == ["ok"] * 3 + ["each"] * 2


async def test_what_a_client_says_of_itself_counts_for_nothing(open_mesh, serve, connect):
    mesh = await open_mesh(**quotas(2.0))
    target = await serve(mesh=mesh, handlers=sources())
    stub = await connect(target)
    claims = [
        (("x-consumer", str(n)), ("authorization", f"Bearer {n}"), ("user-agent", str(n))) for n in range(4)
    ]
    answers = []
    for metadata in claims:
        try:
            await stub.Ask(pb.Plain(), metadata=metadata)
            answers.append("ok")
        except grpc.aio.AioRpcError as error:
            answers.append(refused(error))
    assert answers == ["ok", "ok", "each", "each"]


async def test_a_quota_for_some_clients_leaves_others_to_the_budget(open_mesh, fleet):
    mesh = await open_mesh(epsilon=5.0, **quotas(1.0, consumers=["spiffe://partner.example/*"]))
    await fleet.start(mesh)
    partner, own = await fleet.named(PARTNER), await fleet.rotated()
    assert [await ask(partner) for _ in range(2)] == ["ok", "each"]
    assert [await ask(own) for _ in range(5)] == ["ok"] * 4 + ["station"]


async def test_every_arity_and_kind_of_handler_is_charged_to_the_client(open_mesh, fleet):
    mesh = await open_mesh(**quotas(4.0))
    await fleet.start(mesh)
    one, two = await fleet.named(PARTNER), await fleet.named(OTHER)
    for stub in (one, two):
        assert await ask(stub) == "ok"
        assert is_protected(await stub.AskAll(stream(pb.Plain())))
        received = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in stub.Chat(stream(*[pb.Plain()] * 5)):
                received.append(response)
        assert (len(received), refused(caught.value)) == (2, "each")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Watch(pb.Plain()):
                pass
        assert refused(caught.value) == "each"
    assert await spent(mesh) == {"station": [8.0], "each": [4.0, 4.0]}


async def test_a_thousand_rpcs_against_quotas_for_twenty(open_mesh, fleet):
    mesh = await open_mesh(epsilon=30.0, **quotas(20.0))
    await fleet.start(mesh)
    stubs = [await fleet.named(PARTNER), await fleet.named(OTHER)]
    answers = await asyncio.gather(*(ask(stubs[number % 2]) for number in range(1000)))
    each = [Counter(answers[number::2])["ok"] for number in range(2)]
    assert sum(each) == 30
    assert max(each) <= 20
    assert {"each", "station"} >= set(answers) - {"ok"}
    assert await spent(mesh) == {"station": [30.0], "each": sorted(map(float, each))}


async def test_a_thousand_rpcs_of_one_client_against_a_quota_for_ten(open_mesh, fleet):
    mesh = await open_mesh(epsilon=500.0, **quotas(10.0))
    await fleet.start(mesh)
    stub = await fleet.named(PARTNER)
    answers = Counter(await asyncio.gather(*(ask(stub) for _ in range(1000))))
    assert answers == {"ok": 10, "each": 990}
    assert await spent(mesh) == {"station": [10.0], "each": [10.0]}


async def test_a_sender_names_who_receives(open_mesh, serve, connect):
    mesh = await open_mesh(epsilon=5.0, **quotas(2.0))
    seen = rig.Seen()
    target = await serve(handlers=seen.handlers())
    one, two = [await connect(target, mesh, consumer=name) for name in ("analytics", "billing")]
    for stub in (one, two):
        for _ in range(2):
            await stub.Report(reading())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReportAll(stream(reading()))
        assert refused(caught.value) == "each"
    assert len(seen) == 4
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await one.Report(reading())
    assert "analytics" not in str(rig.status(caught.value))


async def test_a_quota_that_suppresses_sends_blanks_to_its_client(open_mesh, fleet):
    mesh = await open_mesh(**quotas(1.0, on_exhausted="suppress"))
    await fleet.start(mesh)
    one, two = await fleet.named(PARTNER), await fleet.named(OTHER)
    answers = [await one.Ask(pb.Plain()) for _ in range(2)]
    assert [bool(answer.levels) for answer in answers] == [True, False]
    assert (await two.Ask(pb.Plain())).levels


async def test_budgets_by_direction_and_method(open_mesh, serve, connect):
    prefix = rig.PREFIX
    base = {"epsilon": 2.0, "accounting": "pure"}
    budgets = [
        {**base, "name": "in", "directions": ["request"]},
        {
            **base,
            "name": "out",
            "epsilon": 5.0,
            "directions": ["response"],
            "methods": [f"{prefix}Ask", f"{prefix}Watch"],
        },
        {**base, "name": "watched", "epsilon": 1.0, "methods": [f"{prefix}Watch"]},
    ]
    mesh = await open_mesh(budget=budgets)
    seen = rig.Seen()
    stub = await connect(await serve(mesh=mesh, handlers={**seen.handlers(), **sources()}), mesh)
    await stub.Report(reading())
    assert await ask(stub) == "ok"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Watch(pb.Plain()):
            pass
    assert refused(caught.value) == "watched"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.AskAll(stream(pb.Plain()))
    found = rig.status(caught.value)
    assert (found.code, found.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BAD_ANNOTATION")
    assert await spent(mesh) == {"in": [1.0], "out": [2.0], "watched": [1.0]}


async def test_an_invalid_or_nameless_certificate_is_still_one_consumer(open_mesh, fleet):
    mesh = await open_mesh(**quotas(1.0))
    await fleet.start(mesh)
    # Two SPIFFE IDs make no X.509-SVID; the first one counts.
    assert await ask(await fleet.named(PARTNER, OTHER)) == "ok"
    assert await ask(await fleet.named(PARTNER)) == "each"
    assert await ask(await fleet.named()) == "ok"
    assert await ask(await fleet.named()) == "each"


URI, DNS, EMAIL = x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name
IP = x509.IPAddress(ip_address("10.0.0.1"))


@pytest.mark.parametrize(
    ("names", "common", "consumer"),
    [
        ([URI("SPIFFE://Partner.Example/Analytics")], "a", "spiffe://partner.example/Analytics"),
        ([DNS("a.example"), URI(PARTNER)], "a", PARTNER),
        ([URI("https://a.example"), URI(PARTNER)], "a", PARTNER),
        ([URI(f"SPIFFE://Partner.Example/{'0a' * 16}")], "", "spiffe://partner.example"),
        ([URI("dns:a.example")], "a", "uri:dns:a.example"),
        ([DNS("A.example"), DNS("b.example")], "a", "dns:a.example"),
        ([DNS(PARTNER)], "", f"dns:{PARTNER}"),
        ([EMAIL("Me@Partner.Example")], "a", "email:Me@partner.example"),
        ([IP], "a", "ip:10.0.0.1"),
        ([], PARTNER, f"cn:{PARTNER}"),
        ([], "dns:a.example", "cn:dns:a.example"),
        ([x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4"))], "a", "cn:a"),
        ([], "", ""),
    ],
)
async def test_a_consumer_is_the_best_name_in_its_certificate_and_poses_as_no_other_kind(
    open_mesh, fleet, names, common, consumer
):
    quota = [{**QUOTA, "epsilon": 1.0, "consumers": [consumer]}]
    mesh = await open_mesh(quota=quota)
    await fleet.start(mesh)
    client = await fleet.having(*names, common=common)
    assert [await ask(client) for _ in range(2)] == ["ok", "each"]
    account = consumer_key(b"s1", consumer)
    assert mesh.ledger.usage(1, account) is not None


async def test_without_quotas_nobody_asks_who_the_client_is(open_mesh, serve, connect, monkeypatch):
    import dpmesh_grpc.protection.context as context

    monkeypatch.setattr(context, "_consumer", lambda _: pytest.fail("asked"))
    mesh = await open_mesh()
    stub = await connect(await serve(mesh=mesh, handlers=sources()))
    assert await ask(stub) == "ok"


@pytest.mark.parametrize("method", ["Ask", "Watch", "Chat", "AskAll"])
@pytest.mark.parametrize("paid", [True, False])
async def test_a_refused_response_is_gone_after_its_rpc(open_mesh, serve, connect, method, paid):
    """Whether its budget is used up, or there is none, which is decided once for each method and kept."""
    base = {"name": "station", "epsilon": 1.0, "accounting": "pure"}
    mesh = await open_mesh(budget=[{**base, **({} if paid else {"methods": ["/no.Such/Method"]})}])
    responses = [reading() for _ in range(5)]

    async def ask(request, context):
        return responses[int(request.text)]

    async def watch(request, context):
        yield responses[int(request.text)]

    async def write(requests, context):
        async for request in requests:
            await context.write(responses[int(request.text)])

    def ask_all(requests, context):
        return responses[int(next(iter(requests)).text)]

    handler = {"Ask": ask, "Watch": watch, "Chat": write, "AskAll": ask_all}[method]
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    codes = []
    for number in range(5):
        request = pb.Plain(text=str(number))
        call = getattr(stub, method)(request if method in ("Ask", "Watch") else stream(request))
        try:
            if method in ("Watch", "Chat"):
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if paid else grpc.StatusCode.FAILED_PRECONDITION
    assert codes == [code] * (4 if paid else 5)
    del call

    def gone():
        gc.collect()
        # gRPC keeps the exception of the last RPC until the next one.
        return all(sys.getrefcount(responses[number]) == 2 for number in range(4))

    await until(gone)  # A handler in a thread may still be on its way out.


async def test_a_quota_smaller_than_a_message_gives_no_time_to_retry(open_mesh, fleet):
    mesh = await open_mesh(**quotas(0.5, consumers=["spiffe://partner.example/*"]))
    await fleet.start(mesh)
    client = await fleet.named(PARTNER)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.Ask(pb.Plain())
        found = rig.status(caught.value)
        assert (found.info.metadata["budget"], found.retry) == ("each", None)
        assert "waiting is no help" in found.text


@pytest.mark.parametrize("method", ["Report", "ReportWatch", "ReportAll", "ReportChat"])
@pytest.mark.parametrize("station", ["s1", ""])
async def test_a_refused_request_is_gone_after_its_rpc(open_mesh, serve, connect, method, station):
    mesh = await open_mesh(epsilon=1.0)
    stub = await connect(await serve(handlers=rig.Seen().handlers()), mesh)
    await stub.Report(reading())
    requests, calls = [reading(station) for _ in range(4)], []
    gc.collect()
    gc.disable()
    try:
        for number in range(4):
            many = method in ("ReportAll", "ReportChat")
            call = getattr(stub, method)(stream(requests[number]) if many else requests[number])
            with pytest.raises(grpc.aio.AioRpcError):
                await (call.read() if method in ("ReportWatch", "ReportChat") else call)
            calls.append(call)
        del call
        await until(lambda: [sys.getrefcount(requests[number]) for number in range(4)] == [2] * 4)
    finally:
        gc.enable()
