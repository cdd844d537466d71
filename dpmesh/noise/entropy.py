"""Where random bits come from: AES-256 in counter mode under keys from the operating system.

There is one source and no fallback: when `os.urandom` fails, its error passes through and nothing is drawn.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_PIECE = 1 << 16
_ZEROS = memoryview(bytes(_PIECE))


class KeyStream:
    """An endless stream of uniform, independent bits.

    Each stream has a key of its own, so two streams never agree, in whatever processes or threads they were
    made. The samplers make one for each block of draws and drop it, and the key with it, when the block is
    done.

    Args:
        key: 32 secret bytes that make the stream repeatable: for answers that are memoized, and for tests. Absent, the
            key is `os.urandom`'s.
    """

    __slots__ = ("_update",)

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32) if key is None else key), modes.CTR(bytes(16)))
        self._update = cipher.encryptor().update_into

    def fill(self, array: NDArray[Any]) -> None:
        """Overwrites a contiguous array with the next bits of the stream."""
        if not array.size:
            return
        out = array.data.cast("B")
        for start in range(0, len(out), _PIECE):
            piece = out[start : start + _PIECE]
            self._update(_ZEROS[: len(piece)], piece)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of 64 bits."""
        array = np.empty(count, dtype=np.uint64)
        self.fill(array)
        return array

    def integer(self, bits: int) -> int:
        """The next uniform integer of `bits` bits, a multiple of 8."""
        array = np.empty(bits // 8, dtype=np.uint8)
        self.fill(array)
        return int.from_bytes(array.tobytes(), "big")
