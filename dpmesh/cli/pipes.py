"""Standard output into a pipe that may be closed: `dpmesh check | head -1` ends with check's own exit code."""

from __future__ import annotations

import os
from typing import Any


class LeavableOutput:
    """An output stream that discards everything once its reader is gone.

    Without it, such a command ends with exit code 1, as if it had found something, or with 120.

    Args:
        stream: Standard output, or its buffer.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> LeavableOutput:
        """The stream for bytes."""
        return LeavableOutput(self._stream.buffer)

    def write(self, data: Any) -> int:
        """Writes, or does nothing once the reader is gone."""
        try:
            return int(self._stream.write(data))
        except BrokenPipeError:
            self._drop()
            return len(data)

    def writelines(self, lines: Any) -> None:
        """Writes all of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes, or does nothing once the reader is gone."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Sends the rest to /dev/null, also what Python flushes when it ends."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self._stream.fileno())
        os.close(devnull)
