"""Standing: what has failed since the last success, and what is logged of it: each change of state once."""

from __future__ import annotations

import enum
import logging
from typing import Final

log = logging.getLogger("dpmesh")

# A source that speaks to a peer might pass on what the peer calls its reason: only these are logged and counted.
_REASONS: Final = frozenset(
    {"ISSUER_UNAVAILABLE", "REFUSED", "RATE_LIMITED", "EXPIRED", "UNTRUSTED", "MALFORMED"}
)


class _Phase(enum.Enum):
    GOOD = "the source of identities works again"
    FAILING = "no new identity could be had; the last one is used until it ends"
    OVER = "no new identity could be had and the last one is over; nothing is sent until there is one"


class SourceHealth:
    """How a source does.

    Attributes:
        failures: How many attempts failed since the last that did not.
        last_error: The reason of the last of them, or None.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.last_error: str | None = None
        self._phase = _Phase.GOOD
        self._stumbled: str | None = None

    def failed(self, reason: str) -> str:
        """Counts a failure; returns the reason under which it is counted."""
        self.failures += 1
        self.last_error = reason if reason in _REASONS else "ISSUER_UNAVAILABLE"
        return self.last_error

    def succeeded(self) -> None:
        """Forgets the failures."""
        self.failures, self.last_error = 0, None
        self._enter(_Phase.GOOD)

    def tell(self, over: bool) -> None:
        """Logs what the failures mean, if there are any: the last identity is still in force, or it is over."""
        if self.failures:
            self._enter(_Phase.OVER if over else _Phase.FAILING)

    def stumbled(self, kind: str | None) -> None:
        """Logs the type of an exception that nobody expected; None when there is none any more."""
        if kind not in (None, self._stumbled):
            log.warning("identity: rotation stumbled and goes on (%s)", kind)
        self._stumbled = kind

    def _enter(self, phase: _Phase) -> None:
        if phase is not self._phase:
            self._phase = phase
            log.warning("identity: %s%s", phase.value, f" [{self.last_error}]" if self.last_error else "")
