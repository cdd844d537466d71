"""Connections that break in ways that a server or a network produces rarely."""

from __future__ import annotations

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, open_store
from tests.faults.holders import BUDGETS, Event, Record, Report, Work, check


class Endless:
    """A relay in front of a server that passes on what it says, but never that it has closed the connection."""

    def __init__(self, url: str) -> None:
        self.ended = 0  # connections that the server has ended; all that it said before was passed on
        self._target = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Endless:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._target._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection(self._target.hostname, self._target.port)
        for source, sink in ((reader, behind[1]), (behind[0], writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink, source is behind[0])))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, downward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        self.ended += downward


def test_a_connection_that_the_server_ended_and_nobody_closed_is_replaced(postgres, make_ledger):
    """The server says that it ends an idle connection, and the end of the connection never arrives.

    asyncpg can't use such a connection any more, and does not count it as closed. The ledger says what it is, and takes
    another.
    """
    url = make_ledger(postgres)
    report = Report(Work(url))

    texts: set[str] = set()

    async def run() -> None:
        async with Endless(url) as relay:
            ledger = Ledger(open_store(relay.url), BUDGETS)
            await ledger.open()
            report.records.append(Record(Event.OPENED, 0, 0, 0, 0, ledger._store._chain.name))
            for unit in range(5):
                await postgres.sql(
                    "postgres",
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE application_name = 'dpmesh' AND state = 'idle'",
                )
                async with asyncio.timeout(40):
                    while relay.ended <= unit:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
                async with asyncio.timeout(40):
                    while True:
                        began = time.monotonic()
                        try:
                            await ledger.charge(report.work.charges(unit, 1))
                            break
                        except LedgerError as error:
                            texts.add(str(error))
                        await asyncio.sleep(0.05)
                report.records.append(Record(Event.RELEASED, unit, 1, began, time.monotonic(), b""))
            await ledger.close()
            report.records.append(Record(Event.CLOSED, 0, 0, 0, 0, b""))

    asyncio.run(run())
    check(url, [report])
    assert all("closed the connection" in text for text in texts), texts
