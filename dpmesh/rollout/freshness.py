"""Freshness: how long ago a source of policies answered, over restarts and whatever the clock does."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dpmesh import files
from dpmesh.clocks import since_boot
from dpmesh.rollout.source import State

log = logging.getLogger("dpmesh")

# What is known is written down again after this part of the longest time offline, which a restart may miss.
_WRITTEN = 0.01


class _Kept(NamedTuple):
    """What is written down, in seconds since 1970.

    Attributes:
        answered: When the source last answered.
        seen: The latest time that was seen.
    """

    answered: float
    seen: float


class Freshness:
    """Counts the time since the last fresh answer.

    Within a process it follows a clock that nobody sets. Over a restart it follows the wall clock, of which the latest
    time that was ever seen is kept: a clock behind that time counts as it. Where nothing is kept yet, the start counts
    as an answer.

    Args:
        path: Where it is kept; None: nowhere. Processes may share the file.
        longest: After how many seconds without an answer a policy expires; None: never.
        now: Seconds since 1970.
        elapsed: Seconds that only grow.
    """

    def __init__(
        self,
        path: Path | None,
        longest: float | None,
        now: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = since_boot,
    ) -> None:
        self._path = path
        self._longest = longest
        self._now = now
        self._elapsed = elapsed
        self._began = elapsed()
        # The latest time that was seen at the beginning.
        self._seen, age = self._start()
        self._answered = self._began - age
        self._interval = math.inf if longest is None else longest * _WRITTEN
        # When the source had answered and when that was noted, as it was written down last.
        self._written = -math.inf, -math.inf

    @property
    def age(self) -> float:
        """Seconds since the last fresh answer."""
        return self._elapsed() - self._answered

    def answered(self) -> None:
        """Counts from now on: there is a fresh answer."""
        self._answered = self._elapsed()

    def of(self, state: State) -> State:
        """The state of a mesh, if that of its source is `state`."""
        if state is State.FRESH:
            return state
        # Written so that a number which is none expires.
        return State.STALE if self._longest is None or self.age <= self._longest else State.EXPIRED

    def note(self) -> None:
        """Writes down from time to time how old the last answer is. It blocks."""
        now = self._elapsed()
        answered, noted = self._written
        if self._path is None or max(self._answered - answered, now - noted) < self._interval:
            return
        seen = max(self._seen + now - self._began, self._now())
        # A full disk makes a restart count more time than has passed, if the source answered, which is the safe side.
        with suppress(OSError), files.locked_folder(self._path.parent):
            known = self._read(self._path) or _Kept(-math.inf, -math.inf)  # Of another process, maybe.
            latest = max(seen, known.seen)
            kept = _Kept(max(seen - (now - self._answered), min(known.answered, latest)), latest)
            files.write(self._path, json.dumps(kept._asdict()).encode())
            self._written = self._answered, now

    def _start(self) -> tuple[float, float]:
        """The latest time that was seen, and the age of the last answer."""
        now = self._now()
        if self._path is None:
            return now, 0.0
        try:
            kept = self._read(self._path)
        except OSError:
            kept = None
        else:
            if kept is None and not self._path.exists():
                return now, 0.0
        if kept is None:
            log.warning("policy.cache: %s can't be read: nobody knows when the source answered", self._path)
            return now, math.inf if self._longest is not None else 0.0
        seen = max(now, kept.seen)
        return seen, max(0.0, seen - kept.answered)

    @staticmethod
    def _read(path: Path) -> _Kept | None:
        """What is written down; None if nothing is, or nothing that can be used.

        Raises:
            OSError: It can't be read.
        """
        try:
            kept = _Kept(**json.loads(files.read_private(path)))
            return kept if all(isinstance(each, float) and math.isfinite(each) for each in kept) else None
        except (FileNotFoundError, files.NotPrivateError, ValueError, TypeError, RecursionError):
            return None
