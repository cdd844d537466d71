"""Ticket metadata: a ticket reaches the client in the initial metadata of the RPC whose token bought it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

log = logging.getLogger("dpmesh.grpc")

TICKET_KEY: Final = "dpmesh-ticket"

# Seconds that a handler has to send initial metadata of its own before the ticket is sent alone. The client's other
# RPCs wait for the ticket.
_PATIENCE: Final = 0.05


class TicketContext:
    """The context of an asynchronous handler whose RPC showed a token: it sends the ticket with initial metadata."""

    def __init__(self, context: Any, ticket: str) -> None:
        self._context = context
        self._pair = (TICKET_KEY, ticket)
        self._sent = False
        self._sending = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends the handler's metadata with the ticket."""
        async with self._sending:
            if self._sent:
                log.warning("a handler's initial metadata came after the ticket of its RPC, and is dropped")
                return
            self._sent = True
            await self._context.send_initial_metadata((*initial_metadata, self._pair))

    async def send_ticket(self) -> None:
        """Sends the ticket, unless it has been sent."""
        async with self._sending:
            if not self._sent:
                self._sent = True
                await self._context.send_initial_metadata((self._pair,))

    def start(self) -> None:
        """Sends the ticket alone if the handler sends nothing for a while."""
        self._later = asyncio.get_running_loop().create_task(self._send_later())

    async def finish(self) -> None:
        """Sends the ticket when the handler has ended, unless it has been sent."""
        later = self._later
        assert later is not None
        if not self._sending.locked():
            later.cancel()
        await asyncio.wait({later})
        if not later.cancelled() and later.exception() is not None:
            log.debug("a ticket could not be sent: the RPC is over")
        if not self._context.done():
            await self.send_ticket()

    async def _send_later(self) -> None:
        await asyncio.sleep(_PATIENCE)
        await self.send_ticket()

    async def write(self, message: Any) -> None:
        """Sends a response, after the ticket."""
        await self.send_ticket()
        await self._context.write(message)

    async def abort(self, *status: Any, **named: Any) -> None:
        """Ends the RPC, after the ticket: the token is spent in any case. The arguments are gRPC's."""
        await self.send_ticket()
        await self._context.abort(*status, **named)

    async def abort_with_status(self, rpc_status: Any) -> None:
        """Ends the RPC with a grpc.Status, after the ticket."""
        await self.send_ticket()
        await self._context.abort_with_status(rpc_status)


class SyncTicketContext:
    """The context of a handler in the executor whose RPC showed a token.

    It sends the ticket when the handler sends something or is done.
    """

    def __init__(self, context: Any, ticket: str) -> None:
        self._context = context
        self._pair = (TICKET_KEY, ticket)
        self._sent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends the handler's metadata with the ticket."""
        self._sent = True
        self._context.send_initial_metadata((*initial_metadata, self._pair))

    def send_ticket(self) -> None:
        """Sends the ticket, unless it has been sent."""
        if not self._sent:
            self.send_initial_metadata(())

    def abort(self, *status: Any, **named: Any) -> None:
        """Ends the RPC, after the ticket. The arguments are gRPC's."""
        self.send_ticket()
        self._context.abort(*status, **named)
