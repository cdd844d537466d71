"""Repositories over HTTPS: real TLS servers, good and bad ones."""

import asyncio
import socket
import sys
import time

import pytest

from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout import tuf_source
from dpmesh.rollout.source import State
from tests.support import children
from tests.support.tls_server import Authority, answering, serving
from tests.support.tuf_repositories import Device, policy, settle


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def trusted(authority, monkeypatch):
    """The system trusts the authority of the tests."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))


@pytest.fixture
def server(repository, authority):
    with serving(repository.folder, authority) as server:
        yield server


@pytest.fixture
def make(tmp_path, repository):
    def made(port, **options):
        return Device(tmp_path / "device", repository, url=f"https://localhost:{port}", **options)

    return made


async def test_it_offers_what_the_server_has(repository, server, make):
    device = make(server.server_port)
    assert await device.epoch() == 1
    repository.add(policy(2))
    repository.ring(2, 1)
    repository.new_keys("timestamp")
    repository.publish()
    assert await device.epoch() == 2
    assert device.source.state is State.FRESH


async def test_a_poll_of_an_unchanged_repository_asks_twice_on_one_connection(server, make):
    device = make(server.server_port)
    await device.epoch()
    server.asked.clear()
    for _ in range(3):
        assert await device.epoch() is None
    assert server.asked == ["/metadata/timestamp.json", "/metadata/2.root.json"] * 3
    assert len(server.resumed) == 1


async def test_it_goes_on_after_the_server_has_ended_an_idle_connection(server, make):
    device = make(server.server_port)
    await device.epoch()
    for _ in range(3):
        server.hang_up()
        assert await device.epoch() is None
    assert device.source.state is State.FRESH


async def test_a_new_connection_goes_on_with_the_old_session(server, make):
    device = make(server.server_port)
    await device.epoch()
    server.hang_up()
    await device.epoch()
    # Python 3.14 shakes hands anew after a connection that was cut.
    assert server.resumed == [False, sys.version_info < (3, 14)]


def test_a_forked_child_leaves_the_connection_to_its_parent(repository, server, make):
    device = make(server.server_port)
    assert asyncio.run(device.epoch()) == 1
    repository.add(policy(2))
    repository.publish()
    settle()
    assert device.source._running.acquire()  # As if the parent were in the middle of a refresh.
    child = children.start(lambda: asyncio.run(device.epoch()))
    device.source._running.release()
    assert children.finish(child) == 2
    assert asyncio.run(device.epoch()) == 2
    assert len(server.resumed) == 2


async def test_a_path_below_the_host(tmp_path, repository, authority, make):
    with serving(tmp_path, authority) as server:
        device = make(f"{server.server_port}/repository/")
        assert await device.epoch() == 1


async def test_a_server_that_nobody_vouches_for(server, make, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").ca))
    device = make(server.server_port)
    assert "certificate is not trusted" in await device.refusal(PolicyUnavailableError)
    monkeypatch.undo()


async def test_roots_that_were_renewed_are_read_again(server, make, monkeypatch, tmp_path, authority):
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").ca))
    device = make(server.server_port)
    await device.refusal(PolicyUnavailableError)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    assert await device.epoch() == 1


async def test_a_certificate_for_another_name(server, make):
    device = make(f"{server.server_port}/")
    device.restart(url=f"https://127.0.0.1:{server.server_port}")
    assert "certificate is not trusted" in await device.refusal(PolicyUnavailableError)


async def test_a_server_without_tls(make):
    with answering(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), None) as port:
        assert await make(port).refusal(PolicyUnavailableError)


async def test_nobody_listens_or_the_name_is_unknown(make):
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    device = make(port)
    assert "refused" in await device.refusal(PolicyUnavailableError)
    device.restart(url="https://nobody.invalid")
    assert await device.refusal(PolicyUnavailableError)


def always(answer: bytes):
    """Answers each request of a connection."""

    def answered(connection):
        while connection.recv(4096):
            connection.sendall(answer)

    return answered


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_redirects_are_not_followed(server, make, authority, status, scheme):
    answer = f"HTTP/1.1 {status}\r\nLocation: {scheme}://localhost:{server.server_port}/metadata/timestamp.json\r\n"
    with answering(always(f"{answer}Content-Length: 0\r\n\r\n".encode()), authority) as port:
        assert "write the address that it redirects to" in await make(port).refusal(PolicyUnavailableError)
    assert server.asked == []


@pytest.mark.parametrize("status", [204, 206, 304, 403, 404, 503])
async def test_other_statuses_are_no_answer(make, authority, status):
    with answering(always(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()), authority) as port:
        assert str(status) in await make(port).refusal(PolicyUnavailableError)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00" * 1000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnothex\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/9.9 999999 OK\r\n\r\n",
        b"",
    ],
)
async def test_garbage_is_no_answer(make, authority, answer):
    def once(connection):
        connection.recv(4096)
        connection.sendall(answer)

    with answering(once, authority) as port:
        assert await make(port).refusal((ConfigError, PolicyUnavailableError))


async def test_an_answer_that_is_cut_off_is_no_answer(make, authority):
    def once(connection):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")

    with answering(once, authority) as port:
        assert "the connection failed" in await make(port).refusal(PolicyUnavailableError)


class TestSlow:
    """A refresh ends in time, whatever the server does; the bound of the tests is 0.3 s."""

    @staticmethod
    def drip(start: bytes, piece: bytes):
        def dripping(connection):
            connection.recv(4096)
            connection.sendall(start)
            while True:
                connection.sendall(piece)
                time.sleep(0.02)

        return dripping

    @pytest.mark.parametrize(
        ("start", "piece"),
        [
            (b"", b"H"),
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
            (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b" "),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1", b";"),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9000\r\n\r\n", b" "),
        ],
    )
    async def test_byte_by_byte(self, make, authority, start, piece):
        with answering(self.drip(start, piece), authority) as port:
            device = make(port, seconds=0.3)
            begun = time.monotonic()
            with pytest.raises(PolicyUnavailableError):
                await device.source.fetch()
            assert time.monotonic() - begun < 4  # The thread is given up after 5.3 s.

    async def test_it_never_answers_or_never_ends_the_handshake(self, make, authority):
        def silent(connection):
            time.sleep(2)

        for who in (authority, None):
            with answering(silent, who) as port:
                assert "took too long" in await make(port, seconds=0.2).refusal(PolicyUnavailableError)

    async def test_it_never_ends(self, make, authority):
        sent = []

        def flood(connection):
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n")
            for _ in range(10_000):
                sent.append(connection.send(b" " * 65536))

        with answering(flood, authority) as port:
            with pytest.raises(ConfigError, match="DownloadLengthMismatchError"):
                await make(port).source.fetch()
            await asyncio.sleep(0)
        assert sum(sent) < 10 << 20

    async def test_the_event_loop_goes_on_meanwhile(self, make, authority):
        with answering(lambda connection: time.sleep(1), authority) as port:
            task = asyncio.create_task(make(port, seconds=0.3).source.fetch())
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            with pytest.raises(PolicyUnavailableError):
                await task
        assert ticks >= 5

    async def test_a_thread_that_hangs_is_given_up_and_followed_by_no_second_one(self, device, monkeypatch):
        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(tuf_source, "_GRACE", 0.0)
        device.restart(seconds=0.1)
        monkeypatch.setattr(
            device.source._download,
            "timestamp",
            lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result(),
        )
        with pytest.raises(PolicyUnavailableError, match="no answer within 0.1 s"):
            await device.source.fetch()
        with pytest.raises(PolicyUnavailableError, match="has not ended yet"):
            await device.source.fetch()
        release.set()
