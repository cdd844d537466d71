"""What a step is: it reads one field of a message and writes it, protected, to another message."""

from __future__ import annotations

from typing import Any, Protocol

from dpmesh.policy.kinds.transforms import Transform
from dpmesh.policy.plan import Pseudonymise


class Run(Protocol):
    """Writes one field, or all fields of a message."""

    def __call__(self, source: Any, target: Any, pseudonymise: Pseudonymise, /) -> None:
        """Reads from one message and writes to the other.

        Args:
            source: The message, or the snapshot of one. It is only read.
            target: The protected message.
            pseudonymise: Maps a unit's canonical bytes to its pseudonym.

        Raises:
            ProtectionError: The source can't be protected.
        """


# Most fields only need a transform between reading and writing: (name, transform) spares them a call of their own.
Step = Run | tuple[str, Transform]
