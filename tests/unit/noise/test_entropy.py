"""The one source of bits."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dpmesh.noise.entropy import KeyStream
from tests.unit.noise.streams import KEY


def counter_mode(key, blocks):
    """AES-256 in counter mode from single block encryptions."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(encryptor.update(i.to_bytes(16, "big")) for i in range(blocks))


def test_a_stream_is_aes_256_in_counter_mode():
    stream, expected = KeyStream(KEY), counter_mode(KEY, 20_000)
    # Pieces of all sizes, across the size of one encryption call, continue one stream.
    for size in (1, 15, 16, 70_000, 3, 65_536, 131_072):
        array = np.empty(size, np.uint8)
        stream.fill(array)
        assert array.tobytes() == expected[:size]
        expected = expected[size:]


def test_words_and_integers_continue_the_same_stream():
    expected = counter_mode(KEY, 4)
    stream = KeyStream(KEY)
    assert stream.words(2).tobytes() == expected[:16]
    assert stream.integer(112) == int.from_bytes(expected[16:30], "big")
    assert stream.integer(8) == expected[30]


def test_streams_never_agree():
    assert len({KeyStream().integer(128) for _ in range(1000)}) == 1000


def test_there_is_no_fallback(monkeypatch):
    def broken(count):
        raise OSError("no entropy")

    monkeypatch.setattr(os, "urandom", broken)
    with pytest.raises(OSError, match="no entropy"):
        KeyStream()
