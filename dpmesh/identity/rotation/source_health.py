"""SourceHealth: what has failed since a source's last success, and what is logged of it: each change of state once."""

from __future__ import annotations

import enum
import logging
from typing import Final

log = logging.getLogger("dpmesh")

# A source that speaks to a peer might pass on what the peer calls its reason: only these are logged and counted.
_REASONS: Final = frozenset(
    {"ISSUER_UNAVAILABLE", "REFUSED", "RATE_LIMITED", "EXPIRED", "UNTRUSTED", "MALFORMED"}
)


class _State(enum.Enum):
    """A state of the source; the value is the log's text on entering it."""

    WORKING = "the source of identities works again"
    FAILING = "no new identity could be had; the last one is used until it ends"
    EXPIRED = "no new identity could be had and the last one is over; nothing is sent until there is one"


class SourceHealth:
    """The health of a source of identities. `IdentityStatus` shows its attributes."""

    def __init__(self) -> None:
        self.failures = 0
        self.last_error: str | None = None
        self._state = _State.WORKING
        self._unexpected: str | None = None

    def record_failure(self, reason: str) -> str:
        """Counts a failure; returns the reason under which it is counted."""
        self.failures += 1
        self.last_error = reason if reason in _REASONS else "ISSUER_UNAVAILABLE"
        return self.last_error

    def record_success(self) -> None:
        """Forgets the failures."""
        self.failures, self.last_error = 0, None
        self._enter(_State.WORKING)

    def log_failing(self, expired: bool) -> None:
        """Logs what the failures mean, if there are any, for an identity that has or has not expired."""
        if self.failures:
            self._enter(_State.EXPIRED if expired else _State.FAILING)

    def log_unexpected(self, exception: str | None) -> None:
        """Logs the type of an exception that rotation does not expect, once until there is another or none."""
        if exception not in (None, self._unexpected):
            log.warning("identity: rotation met an unexpected error and goes on (%s)", exception)
        self._unexpected = exception

    def _enter(self, state: _State) -> None:
        if state is not self._state:
            self._state = state
            log.warning("identity: %s%s", state.value, f" [{self.last_error}]" if self.last_error else "")
