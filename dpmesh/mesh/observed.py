"""Observed refusals: tells people what observe mode lets pass, without a line for each message."""

from __future__ import annotations

import logging

from dpmesh.bounded import BoundedTable
from dpmesh.errors import DpmeshError

_KEPT = 1024


class ObservedRefusals:
    """Logs each reason for which messages of a method or type would be refused, once."""

    def __init__(self) -> None:
        self._logged: BoundedTable[tuple[str, str, object], bool] = BoundedTable(_KEPT)

    def note(self, log: logging.Logger, name: str, error: Exception) -> None:
        """Logs a refusal, unless one for an equal reason was logged before.

        Args:
            log: Where to.
            name: The method, or the full name of the message type.
            error: Why the message would be refused. Of any exception but dpmesh's own only the type is shown, because
                its text may quote a value.
        """
        kind = type(error).__name__
        reason = next((each for key in ("reason", "rule", "budget") if (each := vars(error).get(key))), None)
        if (name, kind, reason) in self._logged:
            return
        self._logged[name, kind, reason] = True
        why = str(error) if isinstance(error, DpmeshError) else kind
        log.warning(
            "observe mode: %s would have been refused: %s. More like this are only counted (dpmesh.observed.refusals)",
            name,
            why,
        )
