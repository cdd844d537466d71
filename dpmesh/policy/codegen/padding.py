"""Padding: makes protected messages as long as one of a few public sizes, whatever they say."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import Message

from dpmesh.errors import ProtectionError
from dpmesh.policy.plan import Build, Pseudonymise

# The number of the field that holds the padding, as bytes. It is declared nowhere: every protobuf parser keeps or skips
# it, and a dpmesh sender that passes the message on drops it.
FIELD: Final = 52830


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


_TAG: Final = _varint(FIELD << 3 | 2)
# The smallest padding: a field of no bytes.
_EMPTY: Final = _TAG + _varint(0)
LEAST: Final = len(_EMPTY)


def padding(size: int) -> bytes:
    """So many bytes of a serialized message that say nothing.

    A field of n bytes takes n, its tag, and the varint of n. So where that varint becomes longer, one field can't have
    exactly one size; an empty field before another makes up for it.

    Args:
        size: At least `LEAST`.
    """
    room = size - len(_TAG)
    for digits in range(1, 6):
        length = _varint(room - digits) if room >= digits else b""
        if len(length) == digits:
            return _TAG + length + bytes(room - digits)
    return _EMPTY + padding(size - LEAST)


def padded(build: Build, sizes: Sequence[int], name: str) -> Build:
    """What builds messages of public sizes.

    Args:
        build: Builds protected messages.
        sizes: In bytes, ascending. A message gets the smallest that holds it and at least `LEAST` bytes of padding.
        name: Of the message type, for errors.
    """

    def run(source: Any, pseudonymise: Pseudonymise, /) -> Message:
        message = build(source, pseudonymise)
        if not message.IsInitialized():
            return message  # It can't be sent, and has no size.
        size = message.ByteSize()
        position = bisect_left(sizes, size + LEAST)
        if position == len(sizes):
            text = f"is larger, with {LEAST} bytes of padding, than the largest size of its pad_to"
            raise ProtectionError("SIZE", name, text)
        message.MergeFromString(padding(sizes[position] - size))
        return message

    return run
