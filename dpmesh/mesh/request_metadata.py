"""RequestMetadata: what may leave of the metadata that goes along with a method's requests.

| metadata                          | with protected requests   | with others               |
|-----------------------------------|---------------------------|---------------------------|
| keys of dpmesh                    | leave                     | leave                     |
| trace contexts, such as           | leave, but not across a   | leave, but not across a   |
| `traceparent`                     | trust boundary            | trust boundary            |
| keys in [grpc] pass_metadata      | leave                     | leave                     |
| `baggage`                         | never                     | leaves, but not across a  |
|                                   |                           | trust boundary            |
| all others                        | never                     | leave                     |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, Final

from dpmesh.bounded import BoundedTable
from dpmesh.config.model import BAGGAGE_KEYS
from dpmesh.mesh.mesh import Mesh

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

# All keys in lower case, as gRPC's are. They name a trace, and with it all else that is known of the trace.
TRACE_KEYS: Final = frozenset(
    {
        *("traceparent", "tracestate"),  # W3C
        *("b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"),
        *("uber-trace-id", "x-cloud-trace-context", "x-amzn-trace-id", "x-ot-span-context"),
        *("grpc-trace-bin", "x-datadog-trace-id", "x-datadog-parent-id"),
    }
)
# The keys that dpmesh adds, and the scheme of its anonymous tokens in `authorization`.
_OWN: Final = frozenset({"dpmesh-policy", "dpmesh-ticket", "grpc-internal-encoding-request"})
_ANONYMOUS: Final = "PrivateToken "

# Other keys are not logged by name: an application could make keys of values.
_NAME: Final = re.compile("[a-z_-]+")
_KEYS_KEPT: Final = 1024


class DroppedKeys:
    """Logs each key of metadata that does not leave, once and without its value."""

    def __init__(self, mesh: Mesh) -> None:
        self._observing = mesh.observing
        self._logged: BoundedTable[str, bool] = BoundedTable(_KEYS_KEPT)

    def note(self, key: str, method: str) -> None:
        """Logs a key, unless it was logged before.

        Args:
            key: In lower case.
            method: The method on which it was dropped first.
        """
        name = repr(key) if key in TRACE_KEYS or _NAME.fullmatch(key) else "with signs that are no letters"
        if name in self._logged:
            return
        self._logged[name] = True
        what = (
            "observe mode: metadata key %s would not leave on %s%s"
            if self._observing
            else "metadata key %s does not leave on %s%s"
        )
        log.warning(what, name, method, _reason(key))


def _reason(key: str) -> str:
    if key in BAGGAGE_KEYS:
        return ": it may carry anything, so it never leaves with protected messages"
    if key in TRACE_KEYS:
        return ": the method is a trust boundary, and the key names a trace"
    return ", which has protected messages; [grpc] pass_metadata lets it leave"


class RequestMetadata:
    """Decides for one method.

    Args:
        mesh: Its configuration names further keys that leave.
        method: "/package.Service/Method".
        boundary: The method is a trust boundary, over which no trace goes on.
        dropped: Logs what does not leave.
    """

    def __init__(self, mesh: Mesh, method: str, boundary: bool, dropped: DroppedKeys) -> None:
        allowed = _OWN | {key.lower() for key in mesh.grpc.pass_metadata}
        # At a boundary this takes trace contexts out again, whatever the configuration says.
        self._allowed = (allowed - TRACE_KEYS if boundary else allowed | TRACE_KEYS) - BAGGAGE_KEYS
        self._cut = TRACE_KEYS | BAGGAGE_KEYS if boundary else frozenset()
        self._observing = mesh.observing
        self._method = method
        self._dropped = dropped

    def with_protected(self, pairs: Iterable[Any] | None) -> Any:
        """The pairs of key and value that leave with a protected request; `pairs` itself if all of them do."""
        return self._without(pairs, [pair for pair in pairs or () if not self._passes(pair)])

    def with_others(self, pairs: Iterable[Any] | None) -> Any:
        """The pairs that leave with a request that needs no protection; `pairs` itself if all of them do."""
        if not self._cut:
            return pairs
        return self._without(pairs, [pair for pair in pairs or () if pair[0].lower() in self._cut])

    def _passes(self, pair: Any) -> bool:
        key, value = pair[0].lower(), pair[1]
        if key in self._allowed:
            return True
        return key == "authorization" and isinstance(value, str) and value.startswith(_ANONYMOUS)

    def _without(self, pairs: Any, dropped: list[Any]) -> Any:
        if not dropped:
            return pairs
        keys = {pair[0] for pair in dropped}
        for key in sorted(keys):
            self._dropped.note(key.lower(), self._method)
        return pairs if self._observing else tuple(pair for pair in pairs if pair not in dropped)
