"""Which time it is, as far as the end of a signed timestamp is concerned.

A timestamp says only until when it is in time. So the time that counts is the later one of the clock and the latest
time seen before, which is kept on the disk: a clock that was set back does not make an old timestamp fresh again.

But a clock that ran far ahead once must not make every later timestamp too old. So no time counts as seen that lies
behind the end of the newest timestamp: that timestamp is too old from then on, and the next one is in time again.

While a process runs, a timestamp also ends when as much time has passed as it had left when the process first saw it,
whatever the clock says. The time in which the machine sleeps counts.
"""

from __future__ import annotations

from collections.abc import Callable


class TrustedTime:
    """The latest time seen, and when the newest timestamp ends.

    Args:
        clock: Seconds since 1970; it may be wrong.
        since_boot: Seconds that never go back.

    Attributes:
        latest: The latest time that counts as seen, in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float], since_boot: Callable[[], float]) -> None:
        self.latest = 0.0
        self._clock, self._since_boot = clock, since_boot
        self._newest = b""
        # Since boot.
        self._end = 0.0

    def follow(self, timestamp: bytes, end: float, latest: float) -> None:
        """Takes a timestamp for the newest.

        Args:
            timestamp: The file.
            end: Its end, in seconds since 1970.
            latest: The latest time that counts as seen: less than before if the keys that signed the timestamps until
                now are worth nothing any more.
        """
        self.latest = latest
        if timestamp != self._newest:
            self._newest = timestamp
            self._end = self._since_boot() + end - max(self._clock(), latest)

    def is_over(self, timestamp: bytes, end: float, latest: float) -> bool:
        """Whether a timestamp is too old; arguments as for `follow`."""
        ran_out = timestamp == self._newest and self._since_boot() >= self._end
        return ran_out or max(self._clock(), latest) >= end

    def seen(self, end: float, latest: float) -> float:
        """The latest time that counts as seen.

        Args:
            end: That of the newest timestamp.
            latest: What counted before.
        """
        return max(latest, min(self._clock(), end))
