"""WorkloadSource against a fake agent: what agents do, and what they should not."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time

import grpc
import pytest
from cryptography import x509

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.identity import spiffe_id
from dpmesh.identity.sources import workload
from dpmesh.identity.sources.workload import WorkloadSource
from tests.support.agent import DOMAIN, FakeAgent, Root, response

PATIENCE = 20.0


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def root(clock):
    return Root.make(clock.now)


@pytest.fixture
async def agent(tmp_path):
    async with FakeAgent(tmp_path) as running:
        yield running


@pytest.fixture
async def source(agent, clock):
    made = WorkloadSource(agent.address, clock=clock)
    yield made
    await made.close()


async def until(condition) -> None:
    """Waits until it holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def fetch_until(source, condition) -> None:
    """Fetches until the identity is as it should be; none of the calls may fail."""
    async with asyncio.timeout(PATIENCE):
        while not condition(await source.fetch()):
            await asyncio.sleep(0.01)


async def refusal(source) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        async with asyncio.timeout(PATIENCE):
            await source.fetch()
    return caught.value


def name(identity) -> str:
    return spiffe_id(x509.load_pem_x509_certificates(identity.certificates)[0])


def is_at(path):
    return lambda identity: name(identity) == f"spiffe://{DOMAIN}/{path}"


# -- what it gives ---------------------------------------------------------------------------------------------------


async def test_the_first_svid(agent, source, root, clock):
    svid = root.svid("a", clock.now, life=1800.0)
    agent.say(response(svid))
    identity = await source.fetch()
    assert is_at("a")(identity)
    assert identity.trust_domain == DOMAIN
    assert identity.trust_bundle == root.pem
    assert identity.obtained == clock.now
    assert identity.not_after == int(clock.now) + 1800
    # Nothing is asked twice, and the same is the same.
    assert await source.fetch() is identity
    assert agent.streams == 1


async def test_a_fetch_waits_for_an_agent_that_thinks(agent, source, root, clock):
    waiting = asyncio.create_task(source.fetch())
    await until(lambda: agent.streams)
    assert not waiting.done()
    agent.say(response(root.svid("a", clock.now)))
    assert is_at("a")(await asyncio.wait_for(waiting, PATIENCE))


async def test_the_default_of_several_svids_is_the_first(agent, source, root, clock):
    agent.say(response(*(root.svid(path, clock.now) for path in ("z", "a", "m"))))
    assert is_at("z")(await source.fetch())


async def test_a_rotation_that_the_agent_pushes(agent, source, root, clock):
    agent.say(response(root.svid("a", clock.now)))
    first = await source.fetch()
    agent.say(response(root.svid("a", clock.now)))
    await fetch_until(source, lambda identity: identity is not first)
    second = await source.fetch()
    assert second.key != first.key
    assert second.certificates != first.certificates
    assert agent.streams == 1


async def test_the_bundle_rolls_over_while_the_svid_stays(agent, source, root, clock):
    svid = root.svid("a", clock.now)
    agent.say(response(svid))
    first = await source.fetch()
    other = Root.make(clock.now)
    svid.bundle = root.der + other.der
    agent.say(response(svid))
    await fetch_until(source, lambda identity: identity.trust_bundle != root.pem)
    both = await source.fetch()
    assert both.certificates == first.certificates
    assert set(x509.load_pem_x509_certificates(both.trust_bundle)) == {root.certificate, other.certificate}
    agent.say(response(other.svid("b", clock.now)))
    await fetch_until(source, is_at("b"))
    assert (await source.fetch()).trust_bundle == other.pem


async def test_the_order_of_roots_means_nothing(agent, source, root, clock):
    # So many that some collide in a set of 256 slots, which then gives them in another order: but for 1 time in 1000.
    roots = [root.der, *(Root.make(clock.now).der for _ in range(59))]
    svid = root.svid("a", clock.now, bundle=b"".join(roots))
    agent.say(response(svid))
    first = await source.fetch()
    svid.bundle = b"".join(reversed(roots))
    agent.say(response(svid))
    await until(lambda: agent.messages == 2)
    # What was sent on this stream has arrived once the next one is there.
    agent.say(grpc.StatusCode.UNAVAILABLE)
    await until(lambda: agent.streams >= 2)
    assert await source.fetch() is first


async def test_federated_roots_are_not_trusted(agent, source, root, clock):
    said = response(root.svid("a", clock.now))
    said.federated_bundles["spiffe://other.org"] = Root.make(clock.now).der
    agent.say(said)
    assert (await source.fetch()).trust_bundle == root.pem


async def test_the_address_is_taken_from_the_environment(agent, root, clock, monkeypatch):
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", agent.address)
    agent.say(response(root.svid("a", clock.now)))
    source = WorkloadSource(clock=clock)
    try:
        assert is_at("a")(await source.fetch())
    finally:
        await source.close()


# -- faults ----------------------------------------------------------------------------------------------------------


async def test_an_agent_that_dies_and_comes_back(agent, source, root, clock):
    agent.say(response(root.svid("a", clock.now, life=600.0)))
    first = await source.fetch()
    await agent.die()
    assert await source.fetch() is first
    clock.now += 599.0
    assert await source.fetch() is first
    clock.now += 2.0
    assert (await refusal(source)).reason == "ISSUER_UNAVAILABLE"
    agent.say(response(root.svid("b", clock.now)))
    await agent.start()
    await until(lambda: agent.streams > 1)
    await comes(source, is_at("b"))


async def comes(source, condition) -> None:
    """Fetches until an identity is there that is as it should be; calls may fail before."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                if condition(await source.fetch()):
                    return
            except IdentityError:
                pass
            await asyncio.sleep(0.01)


async def test_an_agent_that_is_not_there_yet(tmp_path, root, clock):
    agent = FakeAgent(tmp_path, response(root.svid("a", clock.now)))
    source = WorkloadSource(agent.address, clock=clock)
    try:
        error = await refusal(source)
        assert error.reason == "ISSUER_UNAVAILABLE"
        assert str(tmp_path) not in str(error)
        async with agent:
            await comes(source, is_at("a"))
    finally:
        await source.close()


async def test_an_agent_that_knows_no_identity_for_a_while(agent, source, root, clock, caplog):
    agent.say(grpc.StatusCode.PERMISSION_DENIED)
    error = await refusal(source)
    assert error.reason == "ISSUER_UNAVAILABLE"
    assert "PERMISSION_DENIED" in str(error)
    agent.say(response(root.svid("a", clock.now)))
    await comes(source, is_at("a"))
    # And again, while there is an identity.
    before = agent.streams
    agent.say(grpc.StatusCode.PERMISSION_DENIED)
    await until(lambda: agent.streams > before + 1)
    assert is_at("a")(await source.fetch())
    agent.say(response(root.svid("b", clock.now)))
    await fetch_until(source, is_at("b"))
    # What the agent said about it is in no log and no error.
    assert "PERMISSION_DENIED" in caplog.text
    assert "spiffe://" not in caplog.text + str(error) + repr(error.__cause__) + repr(error.__context__)


@pytest.mark.parametrize("status", [grpc.StatusCode.CANCELLED, grpc.StatusCode.INVALID_ARGUMENT])
async def test_statuses_that_the_package_gives_up_on(agent, source, root, clock, status):
    agent.say(status)
    assert (await refusal(source)).reason == "ISSUER_UNAVAILABLE"
    agent.say(response(root.svid("a", clock.now)))
    await comes(source, is_at("a"))


def garbage(root: Root, now: float) -> dict[str, object]:
    def spoilt(**parts: bytes):
        svid = root.svid("secret", now)
        for part, value in parts.items():
            setattr(svid, part, value)
        return response(svid)

    good = root.svid("secret", now)
    return {
        "no SVID": response(),
        "no certificate": spoilt(x509_svid=b""),
        "noise for a certificate": spoilt(x509_svid=b"\x30\x82noise"),
        "a cut certificate": spoilt(x509_svid=good.x509_svid[:-1]),
        "a CA for a leaf": spoilt(x509_svid=root.der),
        "no key": spoilt(x509_svid_key=b""),
        "another key": spoilt(x509_svid_key=good.x509_svid_key),
        "no bundle": spoilt(bundle=b""),
        "noise for a bundle": spoilt(bundle=b"noise"),
    }


@pytest.mark.parametrize("what", garbage(Root.make(time.time()), time.time()))
async def test_garbage(agent, source, root, clock, what):
    bad = garbage(root, clock.now)[what]
    agent.say(bad)
    error = await refusal(source)
    assert error.reason == "MALFORMED"
    assert "secret" not in str(error)
    agent.say(response(root.svid("a", clock.now)))
    await comes(source, is_at("a"))
    # It costs nothing that is good.
    before = agent.streams
    agent.say(bad)
    await until(lambda: agent.streams > before)
    assert is_at("a")(await source.fetch())


async def test_what_is_not_even_the_protocol(agent, source, root, clock):
    agent.say(b"\xff\xff\xff\xff")
    assert (await refusal(source)).reason == "ISSUER_UNAVAILABLE"
    agent.say(response(root.svid("a", clock.now)))
    await comes(source, is_at("a"))


async def test_an_svid_that_is_over(agent, source, root, clock):
    agent.say(response(root.svid("a", clock.now, life=-1.0)))
    assert (await refusal(source)).reason == "EXPIRED"


async def test_an_agent_that_never_answers(agent, source, root, clock, monkeypatch):
    monkeypatch.setattr(workload, "ANSWER", 0.3)
    monkeypatch.setattr(
        workload, "LONGEST", 600.0
    )  # The thread's limit is what ends it, not that of `fetch`.
    error = await refusal(source)
    assert error.reason == "ISSUER_UNAVAILABLE"
    # It does not wait on that stream for ever.
    await until(lambda: agent.streams > 1 and agent.closed)
    agent.say(response(root.svid("a", clock.now)))
    await comes(source, is_at("a"))


async def test_a_stream_that_falls_silent(agent, source, root, clock, monkeypatch):
    """A newer SVID is asked for before the old one is over, although the stream did not end."""
    monkeypatch.setattr(workload, "LONGEST", 0.2)
    agent.say(response(root.svid("a", clock.now, life=1.0)))
    await source.fetch()
    agent.say(response(root.svid("b", clock.now)), to_open_streams=False)
    await fetch_until(source, is_at("b"))
    assert agent.streams > 1


async def test_a_clock_that_jumps(agent, source, root, clock):
    agent.say(response(root.svid("a", clock.now, life=600.0)))
    identity = await source.fetch()
    clock.now += 900.0
    assert (await refusal(source)).reason == "ISSUER_UNAVAILABLE"
    clock.now -= 900.0
    assert await source.fetch() is identity
    clock.now -= 300.0
    assert await source.fetch() is identity


async def test_an_error_of_the_unexpected_kind(agent, source, root, clock, monkeypatch):
    broken = threading.Event()

    def read(*_):
        broken.set()
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(workload, "_read", read)
        agent.say(response(root.svid("a", clock.now)))
        error = await refusal(source)
    assert broken.is_set()
    assert error.reason == "ISSUER_UNAVAILABLE"
    assert "secret" not in str(error)
    await comes(source, is_at("a"))


async def test_each_kind_of_failure_is_logged_once(agent, source, root, clock, caplog):
    caplog.set_level(logging.INFO)
    agent.say(response(root.svid("a", clock.now)))
    await source.fetch()
    before = agent.streams
    agent.say(grpc.StatusCode.UNAVAILABLE)
    await until(lambda: agent.streams > before + 2)
    ours = [record for record in caplog.records if record.name == "dpmesh"]
    assert [record.levelname for record in ours] == ["WARNING"]


# -- its end ---------------------------------------------------------------------------------------------------------


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.fixture
def patient(monkeypatch):
    """Who closes waits for the thread for longer than any machine takes, so that it ended if the wait did."""
    monkeypatch.setattr(workload, "CLOSING", PATIENCE)


async def test_close_ends_thread_and_connection(agent, root, clock, patient):
    source = WorkloadSource(agent.address, clock=clock)
    before = threads()
    agent.say(response(root.svid("a", clock.now)))
    await source.fetch()
    ours = threads() - before
    assert any(thread.name == "dpmesh-workload-api" for thread in ours)
    began = time.monotonic()
    await source.close()
    assert time.monotonic() - began < workload.CLOSING
    # gRPC's and the package's own threads follow, without being waited for.
    await until(lambda: agent.closed == 1 and not any(thread.is_alive() for thread in ours))
    assert (await refusal(source)).reason == "ISSUER_UNAVAILABLE"
    await source.close()
    assert agent.streams == 1


async def test_close_in_the_middle_of_a_fetch(agent, clock, patient):
    source = WorkloadSource(agent.address, clock=clock)
    waiting = [asyncio.create_task(source.fetch()) for _ in range(3)]
    await until(lambda: agent.streams)
    began = time.monotonic()
    await source.close()
    for each in waiting:
        with pytest.raises(IdentityError, match="closed"):
            await asyncio.wait_for(each, PATIENCE)
    assert time.monotonic() - began < workload.CLOSING
    await until(lambda: agent.closed)


async def test_close_between_two_attempts(tmp_path, clock, monkeypatch, patient):
    monkeypatch.setattr(workload, "SHORTEST", 600.0)
    monkeypatch.setattr(workload, "LONGEST", 600.0)
    source = WorkloadSource(f"unix://{tmp_path}/none", clock=clock)
    before = threads()
    await refusal(source)
    # Others' threads may begin meanwhile, and gRPC's own end a moment later.
    (thread,) = (each for each in threads() - before if each.name == "dpmesh-workload-api")
    began = time.monotonic()
    await source.close()
    assert time.monotonic() - began < workload.CLOSING
    await until(lambda: not thread.is_alive())


async def test_a_fetch_that_is_cancelled_harms_no_other(agent, source, root, clock):
    waiting = [asyncio.create_task(source.fetch()) for _ in range(3)]
    await until(lambda: agent.streams)
    waiting[0].cancel()
    agent.say(response(root.svid("a", clock.now)))
    assert is_at("a")(await waiting[1])
    assert is_at("a")(await waiting[2])
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]


async def test_close_before_any_fetch(tmp_path):
    source = WorkloadSource(f"unix://{tmp_path}/none")
    await source.close()
    assert (await refusal(source)).reason == "ISSUER_UNAVAILABLE"


async def test_many_sources_leave_nothing_open(agent, root, clock):
    agent.say(response(root.svid("a", clock.now)))

    async def one() -> None:
        source = WorkloadSource(agent.address, clock=clock)
        await source.fetch()
        await source.close()

    await one()
    gc.collect()
    before = len(threads())
    for _ in range(20):
        await one()
    await until(lambda: agent.closed == agent.streams == 21)
    await until(lambda: len(threads()) <= before)


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_forked_child_gets_nothing(tmp_path):
    """Nor does it wait for anything. In a process of its own: gRPC itself may crash when it is forked while in use."""
    done = run(
        "import asyncio, os, sys\n"
        "from dpmesh.errors import IdentityError\n"
        "from dpmesh.identity.sources.workload import WorkloadSource\n"
        f"source = WorkloadSource('unix://{tmp_path}/none')\n"
        "async def fetch():\n"
        "    try:\n"
        "        await source.fetch()\n"
        "    except IdentityError as error:\n"
        "        print(error, flush=True)\n"
        "async def main():\n"
        "    await fetch()\n"
        "    if os.fork():\n"
        "        os.wait()\n"
        "        await source.close()\n"
        "        return\n"
        "    try:\n"
        "        fetch().send(None)\n"
        "    except StopIteration:\n"
        "        pass\n"
        "    try:\n"
        "        source.close().send(None)\n"
        "    except StopIteration:\n"
        "        print('closed', flush=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    assert done.returncode == 0, done.stderr
    ours, childs, closed = done.stdout.splitlines()
    assert "at its address" in ours
    assert "a parent process's" in childs
    assert closed == "closed"


def test_a_process_ends_although_nobody_closed_it(tmp_path):
    """Nor does the thread outlive its event loop for long, where the agent is not there."""
    done = run(
        "import asyncio, threading, time\n"
        "from dpmesh.errors import IdentityError\n"
        "from dpmesh.identity.sources.workload import WorkloadSource\n"
        "async def main():\n"
        "    try:\n"
        f"        await WorkloadSource('unix://{tmp_path}/none').fetch()\n"
        "    except IdentityError as error:\n"
        "        print(error.reason)\n"
        "asyncio.run(main())\n"
        "end = time.monotonic() + 10\n"
        "while threading.active_count() > 1 and time.monotonic() < end: time.sleep(0.01)\n"
        "print(threading.active_count())\n"
    )
    assert done.stdout.split() == ["ISSUER_UNAVAILABLE", "1"]
    assert done.returncode == 0
    # One warning, and no traceback.
    assert len(done.stderr.splitlines()) == 1, done.stderr


# -- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "/run/agent.sock",
        "unix:",
        "tcp://127.0.0.1:8081",
        "https://agent",
        "unix://host/agent.sock",
        "unix://[",
    ],
)
def test_a_wrong_address(address, monkeypatch):
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    with pytest.raises(ConfigError, match="SPIFFE_ENDPOINT_SOCKET.*must be a unix socket"):
        WorkloadSource(address)


def test_without_the_package():
    """dpmesh and its identities are there; only this source asks for the package."""
    done = run(
        "import sys\n"
        "sys.modules['spiffe'] = None\n"
        "import dpmesh, dpmesh.identity, dpmesh.identity.sources.workload\n"
        "assert 'grpc' not in sys.modules\n"
        "try:\n"
        "    dpmesh.identity.sources.workload.WorkloadSource('unix:///none')\n"
        "except dpmesh.errors.ConfigError as error:\n"
        "    print(error)\n"
    )
    assert "pip install '.[spiffe]'" in done.stdout, done.stderr
