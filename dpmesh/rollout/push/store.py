"""RolloutStore: where the push service keeps what devices reported: an SQLite file or a PostgreSQL database."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path

from dpmesh import extras
from dpmesh.errors import ConfigError
from dpmesh.rollout.push.counts import Answer, EpochCounts
from dpmesh.rollout.push.published import Published
from dpmesh.rollout.push.reports import OutcomeReport, RefusalReport


class RolloutStore(abc.ABC):
    """Keeps reports. Several services may share one store.

    No device's name, certificate, address or time of report is in it. All methods raise RolloutStoreError if the store
    can't be read or written; what they were to write is then written as a whole, or not at all.
    """

    @abc.abstractmethod
    async def open(self, *, create: bool) -> None:
        """Connects.

        Args:
            create: Makes the tables where there are none.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Disconnects; calling it again does nothing."""

    @abc.abstractmethod
    async def publish(self, published: Published) -> None:
        """Notes what is published: reports about its epoch are counted from now on. Forgets the oldest epochs."""

    @abc.abstractmethod
    async def count_outcomes(self, reports: Sequence[OutcomeReport]) -> Sequence[Answer]:
        """Counts reports about policies.

        Returns:
            What became of each, in their order.
        """

    @abc.abstractmethod
    async def count_refusals(self, newest: int, reports: Sequence[RefusalReport]) -> None:
        """Counts answers about refused messages. A device's first answer in a round counts.

        Args:
            newest: The newest published epoch: devices that run it are the ring, all others the control.
            reports: The answers.
        """

    @abc.abstractmethod
    async def halt(self, epoch: int, reason: str) -> bool:
        """Notes that an epoch is halted.

        Returns:
            Whether it was not halted before.
        """

    @abc.abstractmethod
    async def counts(self) -> list[EpochCounts]:
        """All epochs that are kept, the newest first."""


def open_store(url: str) -> RolloutStore:
    """The store that a URL names; nothing is opened yet.

    Args:
        url: "sqlite:///relative.db", "sqlite:////absolute.db" or "postgresql://user@host:port/database?sslmode=...".

    Raises:
        ConfigError: It is no such URL, or a package that it needs is not installed.
    """
    if url.startswith(("postgresql://", "postgres://")):
        try:
            from dpmesh.rollout.push.postgres_store import PostgresRolloutStore
        except ModuleNotFoundError as error:
            if error.name != "asyncpg":
                raise
            raise ConfigError(f"the store needs asyncpg: {extras.install('postgres')}") from error
        return PostgresRolloutStore(url)
    path = url.removeprefix("sqlite:///")
    if path in ("", url) or path.endswith("/") or "?" in path or not path.isprintable():
        raise ConfigError(
            'the store is "sqlite:///FILE" or "postgresql://user@host:port/database?sslmode=..."'
        )
    from dpmesh.rollout.push.sqlite_store import SQLiteRolloutStore

    return SQLiteRolloutStore(Path(path))
