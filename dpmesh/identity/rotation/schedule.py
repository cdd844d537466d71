"""Schedule: when an identity is renewed, and when a renewal that failed is tried again.

The functions are pure: time and chance are arguments. The model is SPIRE's agent (pkg/agent/svid/rotator.go,
pkg/common/rotationutil): renewal at half of the life, with jitter that is drawn once per certificate. So a fleet that
enrolled together does not renew together for ever, and nobody recognises a device by its schedule.

A roll is a number drawn evenly from [-1, 1].
"""

from __future__ import annotations

from typing import Final

# Seconds between polls of a source that follows what somebody else decides, and of a clock that may have been set.
POLL: Final = 1.0

_HALF = 0.5
_JITTER = 0.1

# Seconds. The shortest delay protects an issuer whose certificates live for milliseconds.
_SHORTEST = 0.1
_FIRST_RETRY = 1.0
_LAST_RETRY = 30.0
_DOUBLINGS = 5
_FETCH = 10.0


def renew_after(life: float, every: float | None, roll: float) -> float:
    """How many seconds an identity is used before the next one is fetched.

    That is half of the life, or `every` if that is sooner; give or take a tenth of the life or of `every`. A life
    begins when the identity was obtained, because certificates are backdated.
    """
    due = max(_SHORTEST, life * (_HALF + _JITTER * roll))
    return due if every is None else min(due, every * (1 + _JITTER * roll))


def retry_after(failures: int, left: float, life: float, roll: float) -> float:
    """How many seconds to wait after a failure: exponential back-off whose upper half is left to chance.

    That is at most 1, 2, 4, ... 30; at most a tenth of what is left of the identity in force, or of its whole life when
    it has expired; at least 0.1.

    Args:
        failures: How many in a row, this one included.
        left: Seconds until the identity in force expires; 0 or less when it has.
        life: Seconds that it had to live when it was obtained.
        roll: Of this failure.
    """
    longest = min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(failures - 1, _DOUBLINGS))
    delay = longest * (0.75 + 0.25 * roll)
    return max(_SHORTEST, min(delay, (left if left > 0 else life) / 10))


def time_limit(left: float) -> float:
    """How many seconds a source may take for an identity.

    That is 10, or half of what is left of the identity in force if that is less. So a source that hangs is asked again
    in time.
    """
    return min(_FETCH, max(_SHORTEST, left / 2)) if left > 0 else _FETCH
