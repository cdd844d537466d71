"""A linkage attack: from what a server and an observer of the wire see of many sessions, which two are one device's?

The attacker sees sessions as named blobs of bytes and named numbers. For every byte position of every blob, and for
every number, it learns from devices that it knows how much more often two sessions agree (or lie close) when they are one
device's than when they are not; it scores pairs of sessions of other devices by the sum of the log-likelihood ratios.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# What is kept of each direction of a connection: a ClientHello and what follows it.
KEPT = 8192


@dataclass
class Connection:
    """What passes an egress on one connection.

    Attributes:
        sent: The first bytes from the client.
        received: The first bytes to it.
        began: When it was opened, in seconds.
        ended: When both directions had ended.
    """

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    began: float = field(default_factory=time.monotonic)
    ended: float = float("inf")


@dataclass
class Session:
    """What is seen of one connection.

    Attributes:
        blobs: Bytes by name.
        numbers: Whole numbers by name; closeness of two counts, not only equality.
        connection: Itself; for its times, which the attack leaves out.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    connection: Connection | None = None


class Tap:
    """An egress on loopback: forwards connections to a server, and keeps what passes first in each direction."""

    def __init__(self, port: int) -> None:
        self.connections: dict[int, Connection] = {}  # the newest of each of the server's peers' ports
        self.port = 0
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Tap:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)
        # The server sees this port; so that is how what both see is put together.
        seen = inner_writer.get_extra_info("sockname")[1]
        connection = self.connections[seen] = Connection()
        both = (
            self._pump(reader, inner_writer, connection.sent),
            self._pump(inner_reader, writer, connection.received),
        )
        self._writers |= {writer, inner_writer}
        await asyncio.gather(*both)
        connection.ended = time.monotonic()
        self._writers -= {writer, inner_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                kept += data[: KEPT - len(kept)]
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def followed(devices: Sequence[Sequence[Session]]) -> float:
    """How many sessions are told from the end of the one before: the part that follows the nearest end in time."""
    turns = list(zip(*devices, strict=True))
    right = 0
    for earlier, later in itertools.pairwise(turns):
        ends = np.array([session.connection.ended for session in earlier if session.connection])
        for device, session in enumerate(later):
            assert session.connection is not None
            right += int(np.argmin(np.abs(ends - session.connection.began))) == device
    return right / (len(devices) * (len(turns) - 1))


def records(stream: bytes) -> list[tuple[int, bytes]]:
    """The TLS records (RFC 8446, section 5.1) at the start of a stream: type and body, the last one perhaps cut."""
    found, at = [], 0
    while at + 5 <= len(stream):
        length = int.from_bytes(stream[at + 3 : at + 5], "big")
        found.append((stream[at], stream[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def wire(sent: bytes, received: bytes) -> dict[str, bytes]:
    """What an observer of a TLS 1.3 handshake reads: both hellos, and the lengths of all records."""
    ours, theirs = records(sent), records(received)
    lengths = [len(body).to_bytes(2, "big") for _, body in itertools.chain(ours[:10], theirs[:10])]
    return {
        "client hello": ours[0][1] if ours else b"",
        "server hello": theirs[0][1] if theirs else b"",
        "record lengths": b"".join(lengths),
    }


class Attacker:
    """Learns from pairs of sessions of devices that it knows, and tells pairs of others apart.

    Args:
        devices: Each device's sessions.
        seed: Which devices it knows.
    """

    def __init__(self, devices: Sequence[Sequence[Session]], seed: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        self._sessions = [session for sessions in devices for session in sessions]
        self._device = np.repeat(np.arange(len(devices)), [len(sessions) for sessions in devices])
        self._turn = np.concatenate([np.arange(len(sessions)) for sessions in devices])
        order = self._rng.permutation(len(devices))
        self._halves = (order[: len(order) // 2], order[len(order) // 2 :])
        self._bytes = self._columns()
        self._numbers = {
            name: [session.numbers.get(name, -1) for session in self._sessions]
            for name in sorted({name for session in self._sessions for name in session.numbers})
        }

    def _columns(self) -> NDArray[np.int16]:
        """A row for each session: for each blob its length and its bytes, -1 where it has ended."""
        parts = []
        for name in sorted({name for session in self._sessions for name in session.blobs}):
            blobs = [session.blobs.get(name, b"") for session in self._sessions]
            width = max(map(len, blobs))
            part = np.full((len(blobs), width + 1), -1, dtype=np.int16)
            for row, blob in zip(part, blobs, strict=True):
                row[0] = len(blob)
                row[1 : 1 + len(blob)] = np.frombuffer(blob, dtype=np.uint8)
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def _pairs(self, devices: NDArray[np.int64]) -> tuple[Pairs, Pairs]:
        """All pairs of sessions of one of these devices, and as many pairs of sessions of two of them.

        Both at different turns: a device has one session at a time, and times are not what is attacked here.
        """
        rows = [np.flatnonzero(self._device == device) for device in devices]
        same = np.array([pair for mine in rows for pair in itertools.combinations(mine.tolist(), 2)])
        flat = np.concatenate(rows)
        one, two = self._rng.choice(flat, size=(2, len(same) * 2))
        fit = (self._device[one] != self._device[two]) & (self._turn[one] != self._turn[two])
        return same, np.stack([one[fit], two[fit]], axis=1)[: len(same)]

    def _agreement(self, pairs: Pairs) -> Iterator[tuple[Pairs, NDArray[np.int64]]]:
        """In chunks: for each pair whether each byte is the same, and how close each number is."""
        for start in range(0, len(pairs), 2048):
            chunk = pairs[start : start + 2048]
            same = (self._bytes[chunk[:, 0]] == self._bytes[chunk[:, 1]]).astype(np.int64)
            close = [
                [abs(held[one] - held[two]).bit_length() for one, two in chunk.tolist()]
                for held in self._numbers.values()
            ]
            yield (
                chunk,
                np.concatenate([same, np.array(close, dtype=np.int64).reshape(-1, len(chunk)).T], axis=1),
            )

    def _counts(self, pairs: Pairs) -> NDArray[np.int64]:
        """How often each feature has each value: shape (values, features)."""
        counts = np.zeros((_VALUES, self._bytes.shape[1] + len(self._numbers)), dtype=np.int64)
        for _, found in self._agreement(pairs):
            counts[1] += (found == 1).sum(axis=0)
            counts[0] += (found == 0).sum(axis=0)
            for column in range(self._bytes.shape[1], counts.shape[1]):
                counts[:, column] = counts[:, column] + np.bincount(found[:, column], minlength=_VALUES)[
                    :_VALUES
                ] * (np.arange(_VALUES) > 1)
        return counts

    def _scores(self, pairs: Pairs, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate(
            [np.take_along_axis(ratios, found, axis=0).sum(axis=1) for _, found in self._agreement(pairs)]
        )

    def advantage(self) -> float:
        """The true positive rate less the false positive rate, on devices that nothing was learned from.

        Where nothing links, its standard error is at most sqrt(1 / 2m) for m tested pairs of either kind.
        """
        known, unknown = (self._pairs(half) for half in self._halves)
        p, q = ((self._counts(pairs) + 0.5) / (len(pairs) + 1) for pairs in known)
        # Five standard errors: of thousands of features, what is only noise would drown what is a signal.
        error = np.sqrt(np.maximum(p * (1 - p), q * (1 - q)) * 2 / len(known[0]))
        ratios = np.where(np.abs(p - q) > 5 * error, np.log(p / q), 0.0)
        same, different = (self._scores(pairs, ratios) for pairs in known)
        # The threshold, too, is chosen on what the attacker knows.
        cuts = np.unique(np.quantile(np.concatenate([same, different]), np.linspace(0, 1, 512)))
        gains = [(same >= cut).mean() - (different >= cut).mean() for cut in cuts]
        cut = cuts[int(np.argmax(gains))]
        same, different = (self._scores(pairs, ratios) for pairs in unknown)
        return float((same >= cut).mean() - (different >= cut).mean())

    @property
    def tested(self) -> int:
        """How many pairs of either kind the advantage is measured on."""
        return len(self._pairs(self._halves[1])[0])


Pairs = NDArray[np.int64]
# Closeness is a bit length: of 128-bit numbers up to 129.
_VALUES = 200
