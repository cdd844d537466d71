"""Freshness: how long ago a source of policies answered, over restarts and whatever the clock does."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dpmesh import files
from dpmesh.rollout.source import State

log = logging.getLogger("dpmesh")

# An answer is written down again after this part of the longest time offline, which a restart may miss.
_WRITTEN = 0.01


def _elapsed() -> float:
    """Seconds that only grow, while the machine sleeps, too, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Freshness:
    """Counts the time since the last fresh answer.

    Within a process it follows a clock that nobody sets. Over a restart it follows the wall clock, of which the latest
    time that was ever seen is kept: a clock behind that time counts as it. Where nothing is kept yet, the start counts
    as an answer.

    Args:
        path: Where it is kept; None: nowhere, and a start counts as an answer.
        longest: After how many seconds without an answer a policy expires; None: never.
        now: Seconds since 1970.
        elapsed: Seconds that only grow.
    """

    def __init__(
        self,
        path: Path | None,
        longest: float | None,
        now: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = _elapsed,
    ) -> None:
        self._path = path
        self._longest = longest
        self._now = now
        self._elapsed = elapsed
        self._seen, age = self._load()
        self._answered = elapsed() - age
        self._written: float | None = None

    def begin(self) -> None:
        """Writes down the first start, so that restarts don't begin to count anew. It blocks."""
        if self._path is not None and not self._path.exists():
            self._store()

    @property
    def age(self) -> float:
        """Seconds since the last fresh answer."""
        return self._elapsed() - self._answered

    def answered(self) -> None:
        """Notes a fresh answer. It blocks for a write to the disk from time to time."""
        self._answered = self._elapsed()
        if self._written is None or (
            self._longest is not None and self._answered - self._written > self._longest * _WRITTEN
        ):
            self._store()

    def of(self, state: State) -> State:
        """The state of a mesh, if that of its source is `state`."""
        if state is State.FRESH:
            return state
        return State.EXPIRED if self._longest is not None and self.age > self._longest else State.STALE

    def _load(self) -> tuple[float, float]:
        """The latest time that was seen, and the age of the last answer."""
        now = self._now()
        if self._path is None:
            return now, 0.0
        try:
            kept = json.loads(files.read_private(self._path))
            seen, answered = max(now, float(kept["seen"])), float(kept["answered"])
        except FileNotFoundError:
            return now, 0.0
        except (OSError, files.NotPrivateError, ValueError, KeyError, TypeError):
            log.warning("policy.cache: %s can't be read: nobody knows when the source answered", self._path)
            return now, self._longest or 0.0
        return seen, max(0.0, seen - answered)

    def _store(self) -> None:
        self._seen = max(self._seen, self._now())
        self._written = self._answered
        if self._path is None:
            return
        kept = json.dumps({"answered": self._seen, "seen": self._seen}).encode()
        # A disk that is full makes a restart count more time than has passed, which is the safe side.
        with suppress(OSError), files.locked_folder(self._path.parent):
            files.write(self._path, kept)
