"""PostgresRolloutStore: the push service's store in PostgreSQL, which several services may share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from typing_extensions import override

from dpmesh.errors import ConfigError, LedgerError, RolloutStoreError
from dpmesh.ledger.postgres.connection import Connection, check_url
from dpmesh.rollout.push import counts
from dpmesh.rollout.push.counts import Answer, Before, Cell, EpochCounts, Kind, Said
from dpmesh.rollout.push.halting import Round
from dpmesh.rollout.push.published import Published
from dpmesh.rollout.push.reports import OutcomeReport, RefusalReport
from dpmesh.rollout.push.store import RolloutStore

_T = TypeVar("_T")

_TIMEOUT: Final = 10.0  # seconds
_CONNECTING: Final = 4.0  # seconds
# Writers take turns by this lock, so that what they add to counts rests on what the one before has written.
_TURN: Final = "SELECT pg_advisory_xact_lock(hashtext('dpmesh_rollout'))"

_TABLES: Final = """
CREATE SCHEMA IF NOT EXISTS dpmesh_rollout;
CREATE TABLE IF NOT EXISTS dpmesh_rollout.epochs (
    epoch  bigint           PRIMARY KEY CHECK (epoch > 0),
    digest bytea            NOT NULL CHECK (length(digest) = 32),
    share  double precision NOT NULL,
    halted text             NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS dpmesh_rollout.devices (
    epoch     bigint NOT NULL REFERENCES dpmesh_rollout.epochs ON DELETE CASCADE,
    pseudonym bytea  NOT NULL CHECK (length(pseudonym) = 16),
    kind      text   NOT NULL,
    reason    text   NOT NULL,
    PRIMARY KEY (epoch, pseudonym)
);
CREATE TABLE IF NOT EXISTS dpmesh_rollout.cells (
    epoch   bigint NOT NULL REFERENCES dpmesh_rollout.epochs ON DELETE CASCADE,
    kind    text   NOT NULL,
    reason  text   NOT NULL,
    devices bigint NOT NULL,
    PRIMARY KEY (epoch, kind, reason)
);
CREATE TABLE IF NOT EXISTS dpmesh_rollout.rounds (
    round           bigint PRIMARY KEY,
    epoch           bigint NOT NULL REFERENCES dpmesh_rollout.epochs ON DELETE CASCADE,
    ring            bigint NOT NULL DEFAULT 0,
    ring_refused    bigint NOT NULL DEFAULT 0,
    control         bigint NOT NULL DEFAULT 0,
    control_refused bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS dpmesh_rollout.answered (
    round     bigint NOT NULL REFERENCES dpmesh_rollout.rounds ON DELETE CASCADE,
    pseudonym bytea  NOT NULL CHECK (length(pseudonym) = 16),
    PRIMARY KEY (round, pseudonym)
);
"""


class PostgresRolloutStore(RolloutStore):
    """Keeps reports in the schema `dpmesh_rollout` of a database.

    Args:
        url: As for a ledger in PostgreSQL: one that names another machine says how the connection is protected.

    Raises:
        ConfigError: The URL does not, or is invalid.
    """

    def __init__(self, url: str) -> None:
        try:
            check_url(url)
        except ConfigError as error:
            raise ConfigError(str(error).replace("ledger.url", "the store's URL")) from None
        self._connection = Connection(url, _TIMEOUT, _CONNECTING)

    @override
    async def open(self, *, create: bool) -> None:
        async def make(connection: Any) -> None:
            if create:
                await connection.execute(_TABLES)
            elif await connection.fetchval("SELECT to_regclass('dpmesh_rollout.epochs')") is None:
                raise RolloutStoreError(f"{self._connection.address}: holds no store of a push service")

        await self._write(make)

    @override
    async def close(self) -> None:
        await self._connection.close()

    @override
    async def publish(self, published: Published) -> None:
        await self._write(lambda connection: _publish(connection, published))

    @override
    async def count_outcomes(self, reports: Sequence[OutcomeReport]) -> Sequence[Answer]:
        return await self._write(lambda connection: _count_outcomes(connection, reports))

    @override
    async def count_refusals(self, newest: int, reports: Sequence[RefusalReport]) -> None:
        await self._write(lambda connection: _count_refusals(connection, newest, reports))

    @override
    async def halt(self, epoch: int, reason: str) -> bool:
        update = "UPDATE dpmesh_rollout.epochs SET halted = $2 WHERE epoch = $1 AND halted = '' RETURNING 1"
        return await self._write(lambda connection: connection.fetchval(update, epoch, reason)) is not None

    @override
    async def counts(self) -> list[EpochCounts]:
        return await self._write(_counts)

    async def _write(self, work: Callable[[Any], Awaitable[_T]]) -> _T:
        """Does work in a transaction of its own, after all others."""

        async def in_turn(connection: Any) -> _T:
            async with connection.transaction():
                await connection.execute(_TURN)
                return await work(connection)

        try:
            return await self._connection.call(in_turn)
        except LedgerError as error:
            raise RolloutStoreError(str(error).replace("ledger.url", "the store's URL")) from None


async def _publish(connection: Any, published: Published) -> None:
    await connection.executemany(
        "INSERT INTO dpmesh_rollout.epochs (epoch, digest, share) VALUES ($1, $2, $3) "
        "ON CONFLICT (epoch) DO UPDATE SET digest = excluded.digest, share = excluded.share",
        list(published.epochs()),
    )
    await connection.execute(
        "DELETE FROM dpmesh_rollout.epochs WHERE epoch NOT IN "
        "(SELECT epoch FROM dpmesh_rollout.epochs ORDER BY epoch DESC LIMIT $1)",
        counts.KEPT_EPOCHS,
    )
    await connection.execute("DELETE FROM dpmesh_rollout.answered WHERE round < $1", published.version)


async def _count_outcomes(connection: Any, reports: Sequence[OutcomeReport]) -> Sequence[Answer]:
    rows = await connection.fetch(
        "SELECT DISTINCT epoch, pseudonym, kind, reason FROM dpmesh_rollout.devices "
        "JOIN unnest($1::bigint[], $2::bytea[]) AS given (epoch, pseudonym) USING (epoch, pseudonym)",
        [report.epoch for report in reports],
        [report.pseudonym for report in reports],
    )
    said = {(row["epoch"], row["pseudonym"]): Said(Kind(row["kind"]), row["reason"]) for row in rows}
    epochs = await connection.fetch("SELECT epoch, digest FROM dpmesh_rollout.epochs")
    found = counts.changes(Before(dict(map(tuple, epochs)), await _cells(connection), said), reports)
    await connection.executemany(
        "INSERT INTO dpmesh_rollout.devices VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (epoch, pseudonym) DO UPDATE SET kind = excluded.kind, reason = excluded.reason",
        [(*device, str(now.kind), now.reason) for device, now in found.said.items()],
    )
    await connection.executemany(
        "INSERT INTO dpmesh_rollout.cells AS before VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (epoch, kind, reason) DO UPDATE SET devices = before.devices + excluded.devices",
        [(cell[0], str(cell[1]), cell[2], change) for cell, change in found.devices.items() if change],
    )
    return found.answers


async def _count_refusals(connection: Any, newest: int, reports: Sequence[RefusalReport]) -> None:
    for report in reports:
        await connection.execute(
            "INSERT INTO dpmesh_rollout.rounds (round, epoch) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            report.round,
            newest,
        )
        fresh = await connection.fetchval(
            "INSERT INTO dpmesh_rollout.answered VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1",
            report.round,
            report.pseudonym,
        )
        if fresh is not None:
            group = "ring" if report.epoch == newest else "control"
            await connection.execute(
                f"UPDATE dpmesh_rollout.rounds SET {group} = {group} + 1, "  # noqa: S608
                f"{group}_refused = {group}_refused + $2 WHERE round = $1",
                report.round,
                int(report.noisy_refused),
            )


async def _cells(connection: Any) -> dict[Cell, int]:
    rows = await connection.fetch("SELECT epoch, kind, reason, devices FROM dpmesh_rollout.cells")
    return {(epoch, Kind(kind), reason): devices for epoch, kind, reason, devices in rows}


async def _counts(connection: Any) -> list[EpochCounts]:
    rounds: dict[int, list[Round]] = {}
    for epoch, *numbers in await connection.fetch(
        "SELECT epoch, ring, ring_refused, control, control_refused FROM dpmesh_rollout.rounds ORDER BY round"
    ):
        rounds.setdefault(epoch, []).append(Round(*numbers))
    cells = await _cells(connection)
    epochs = await connection.fetch(
        "SELECT epoch, digest, share, halted FROM dpmesh_rollout.epochs ORDER BY epoch DESC"
    )
    return [
        counts.epoch_counts(epoch, digest, share, halted, cells, rounds.get(epoch, ()))
        for epoch, digest, share, halted in epochs
    ]
