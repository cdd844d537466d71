"""ReleaseStream: one direction of a stream, whose messages are released one by one and share a span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import Message

from dpmesh.errors import DpmeshError
from dpmesh.mesh.corridor import Corridor
from dpmesh.mesh.receipt import Direction, Receipt
from dpmesh.mesh.recording import StreamRecord
from dpmesh.mesh.snapshot import PolicySnapshot

if TYPE_CHECKING:
    from dpmesh.mesh.mesh import Mesh


class ReleaseStream:
    """One direction of a stream; Mesh.stream makes it. Without a snapshot, each message takes the one in force."""

    def __init__(
        self,
        mesh: Mesh,
        corridor: Corridor,
        record: StreamRecord,
        method: str,
        direction: Direction,
        consumer: str,
        snapshot: PolicySnapshot | None,
    ) -> None:
        self._mesh = mesh
        self._corridor = corridor
        self._record = record
        self._method = method
        self._direction = direction
        self._consumer = consumer
        self._snapshot = snapshot

    async def release(self, message: Message) -> Receipt:
        """Protects one message, as Mesh.release does and with the same errors."""
        begun = self._corridor.begin(
            message,
            self._method,
            self._direction,
            self._consumer,
            self._snapshot or self._mesh.snapshot,
            self._record,
        )
        return begun if type(begun) is Receipt else await self._corridor.finish(begun)

    def refused(self, error: DpmeshError) -> None:
        """Records the refusal of a message that was not released, as Mesh.refused does, in the stream's span."""
        self._corridor.refused(error, self._method, self._direction, self._record)

    def close(self) -> None:
        """Ends the stream's span; calling it again does nothing."""
        self._record.close()
