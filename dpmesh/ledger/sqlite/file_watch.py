"""FileWatch: notices that something other than SQLite wrote to a ledger's file while a holder has it open."""

from __future__ import annotations

import time
from pathlib import Path

from dpmesh.errors import LostChargesError
from dpmesh.ledger.sqlite import wal
from dpmesh.ledger.sqlite.rollback_guard import RollbackGuard

_RECHECK_SECONDS = 0.02  # after which a suspicion is checked again


class FileWatch:
    """What a holder saw of its file at its last commit.

    SQLite does not notice that a file was overwritten. It would copy more of its log over the file, and mix both.

    Attributes:
        stale: Whether the holder's connection remembers what is no longer in the file, and must be made anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.restart()

    def restart(self) -> None:
        """Forgets what was seen, for a new connection."""
        self.stale = False
        self._seen: tuple[int, ...] = ()  # what changes when the file is written
        self._least_commits = 0  # how many commits the file had at that time, without the log

    def check(self, guard: RollbackGuard) -> None:
        """Checks the file within a transaction, before more of the log can be copied over it.

        Raises:
            LostChargesError: Something else wrote to the file, or removed its log. The guard remembers it if the file
                can't be trusted any more.
        """
        status = self._path.stat()
        try:
            log = self._path.with_name(self._path.name + "-wal").stat().st_ino
        except FileNotFoundError:
            log = 0
        seen = (status.st_mtime_ns, status.st_size, log)
        if seen == self._seen:
            return
        count = wal.count(self._path) or self._least_commits
        if self._is_mixed() if log else count < self._least_commits:
            guard.distrust()
            raise LostChargesError(
                f"{self._path} was overwritten by an older copy while in use: put a whole one in its place, and see "
                "`dpmesh ledger accept --help`"
            )
        if not log or (self._seen and log != self._seen[-1]):
            raise LostChargesError(
                f"the log of {self._path} was removed while in use: restart all of its holders"
            )
        if count < self._least_commits:
            # The copy that was put there may have been accepted. The connection knows only the file before it.
            self.stale = True
            raise LostChargesError(f"{self._path} was replaced while in use: it is read anew")
        self._seen, self._least_commits = seen, count

    def _is_mixed(self) -> bool:
        """Whether the file is older than its log's beginning. Checked twice, because others may be writing."""
        if not wal.gap(self._path):
            return False
        time.sleep(_RECHECK_SECONDS)
        return wal.gap(self._path) > 0
