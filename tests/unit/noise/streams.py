"""Bits that tests decide."""

from dpmesh.noise.entropy import KeyStream

KEY = bytes(range(32))


class Script(KeyStream):
    """A stream that hands out given bytes, and nothing more."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def fill(self, array):
        out = array.data.cast("B")
        assert len(out) <= len(self.data), "the sampler drew more bits than it should"
        out[:] = self.data[: len(out)]
        self.data = self.data[len(out) :]


class Tape(KeyStream):
    """The stream of a fixed key, read byte by byte by reference code."""

    def __init__(self, key: bytes = KEY) -> None:
        super().__init__(key)

    def take(self, count: int) -> bytes:
        import numpy as np

        array = np.empty(count, np.uint8)
        self.fill(array)
        return array.tobytes()
