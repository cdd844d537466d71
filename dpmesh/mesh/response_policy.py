"""ResponsePolicy: what a server may send on one method besides protected messages.

Error texts, status details, metadata and the size of what was compressed can all quote or tell a protected message.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dpmesh.mesh.flow_table import MethodFlows
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.refusals import HANDLER_FAILED, WITHHELD
from dpmesh.mesh.request_metadata import DroppedKeys

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.


class HandlerFailedError(Exception):
    """Stands for an exception of the application, whose text must not reach the peer."""


@dataclass(frozen=True, slots=True)
class ResponsePolicy:
    """The rules for all RPCs of one method on a server.

    Whether messages are protected is asked anew for each RPC: on a method that no loaded proto declares, it changes
    with the first rule.

    Attributes:
        flow: What the method sends.
        requests: What the method receives.
        streams: Its responses are a stream.
        observing: The mode is observe, in which nothing is withheld.
        by_consumer: It matters who receives the responses, for quotas or pseudonyms.
        pass_metadata: The metadata keys that leave anyway, in lower case.
        pass_details: Status details leave anyway.
        dropped_keys: Logs the metadata keys that do not leave.
        intercepted_twice: Two of dpmesh's interceptors serve the method, and both would charge.
    """

    flow: Flow
    requests: Flow
    streams: bool
    observing: bool
    by_consumer: bool
    pass_metadata: frozenset[str]
    pass_details: bool
    dropped_keys: DroppedKeys
    intercepted_twice: bool

    @classmethod
    def of(
        cls, method: MethodFlows, *, streams: bool, details_key: str = "", intercepted_twice: bool = False
    ) -> ResponsePolicy:
        """Derives the rules from the configuration.

        Args:
            method: The method.
            streams: Its responses are a stream.
            details_key: The metadata key, in lower case, in which the transport carries status details, if it does.
            intercepted_twice: Two of dpmesh's interceptors serve the method.
        """
        mesh = method.mesh
        allowed = mesh.grpc
        keys = {key.lower() for key in allowed.pass_metadata}
        if allowed.pass_status_details:
            keys.add(details_key)
        return cls(
            flow=method.response,
            requests=method.request,
            streams=streams,
            observing=mesh.observing,
            by_consumer=method.response.by_consumer,
            pass_metadata=frozenset(keys),
            pass_details=allowed.pass_status_details,
            dropped_keys=method.dropped_keys,
            intercepted_twice=intercepted_twice and not mesh.observing,
        )

    def masks_errors(self) -> bool:
        """Whether exceptions lose their text, which could quote a protected message."""
        return self.flow.sensitive() or self.requests.sensitive()

    def forbids_compression(self) -> bool:
        """Whether responses leave uncompressed, whatever the handler wants: the size of what was compressed tells it.

        A stream's compression is settled before its first message shows whether it is protected.
        """
        if self.streams:
            return self.flow.sensitive()
        return bool(self.flow.protected) and not self.observing

    def details(self, text: str) -> str:
        """The status details as the peer may read them."""
        return WITHHELD if text and self.flow.sensitive() and not self.pass_details else text

    def metadata(self, pairs: Iterable[Any] | None) -> Any:
        """The metadata as the peer may read it: pairs that begin with a key."""
        if not self.flow.sensitive():
            return pairs
        kept, allowed = [], self.pass_metadata
        for pair in pairs or ():
            if pair[0].lower() in allowed:
                kept.append(pair)
            else:
                self.dropped_keys.note(pair[0].lower(), self.flow.method)
        return tuple(kept)

    def without_text(self, function: Any) -> Any:
        """A function that the transport calls, such as a serializer, whose exceptions lose their texts.

        The transport would send them to the peer, or log them. None stays None.
        """
        if function is None:
            return None

        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except Exception as error:
                if arguments == (None,) or not self.masks_errors():
                    raise  # None is a response that is missing; the transport says so.
                self.log_failure(error)
            raise HandlerFailedError(HANDLER_FAILED)

        return call

    def log_failure(self, error: BaseException) -> None:
        """Logs what a handler raised, without its text."""
        log.error(
            "%s: the handler failed with %s %s; the text is left out, it could quote a protected message",
            self.flow.method,
            type(error).__qualname__,
            _raised_at(error),
        )


def _raised_at(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
