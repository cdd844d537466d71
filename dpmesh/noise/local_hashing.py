"""Optimized local hashing, drawn exactly, and its public hash.

dpmesh/v1/report.proto has the hash in ten lines for other languages.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.randomized_response import RandomizedResponse

# Texts that are longer than so many bytes count as the empty text, so that hashing takes no time to speak of.
LONGEST = 1024
# How many different fingerprints, and how many different seeds there are.
FINGERPRINTS = 1 << 64

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)
_LOW = np.uint64((1 << 32) - 1)


def fingerprint(text: str) -> int:
    """The 64 bits that stand for a text: the first eight bytes, big-endian, of the SHA-256 of its UTF-8."""
    # A text has at least as many bytes as characters, and counting these takes no time.
    data = text.encode() if len(text) <= LONGEST else b""
    if len(data) > LONGEST:
        data = b""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def multipliers(
    seeds: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """The numbers a, b and c of the hash under each seed: the first three outputs of SplitMix64.

    Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    first, second, third = (_splitmix64(seeds + np.uint64(i * _GAMMA & _MASK)) for i in (1, 2, 3))
    return first, second, third


def _splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (state ^ state >> np.uint64(30)) * _MIX[0]
    z = (z ^ z >> np.uint64(27)) * _MIX[1]
    return z ^ z >> np.uint64(31)


def support(
    seeds: NDArray[np.uint64], hashes: NDArray[np.uint64], fingerprints: NDArray[np.uint64], g: int
) -> NDArray[np.int64]:
    """For each fingerprint: how many reports have the hash that it has under the report's own seed.

    H = a high + b low + c is compared before its division to g parts: the hash is h where H is from `start`
    on and less than a `width` beyond it, and one comparison of unsigned numbers decides both.

    Args:
        seeds: Of the reports, shape (n,).
        hashes: Of the reports, each below g, shape (n,).
        fingerprints: Shape (m,).
        g: How many hashes there are.

    Returns:
        Shape (m,).
    """
    a, b, c = multipliers(seeds)
    start, end = _first(hashes, g), _first(hashes + np.uint64(1), g)
    c -= start << _HALF
    width = (end - start) << _HALF
    total, product, within = np.empty_like(a), np.empty_like(a), np.empty(a.shape, np.bool_)
    counts = np.empty(len(fingerprints), np.int64)
    for index, (high, low) in enumerate(zip(fingerprints >> _HALF, fingerprints & _LOW, strict=True)):
        np.multiply(a, high, out=total)
        np.multiply(b, low, out=product)
        np.add(total, product, out=total)
        np.add(total, c, out=total)
        np.less(total, width, out=within)
        counts[index] = np.count_nonzero(within)
    return counts


def _first(hashes: NDArray[np.uint64], g: int) -> NDArray[np.uint64]:
    """The least 32-bit number whose product with g, divided by 2^32, is each hash."""
    return ((hashes << _HALF) + np.uint64(g - 1)) // np.uint64(g)


class LocalHashing:
    """Reports of a fingerprint: a uniform seed, and the fingerprint's hash under it by randomized response.

    The seed tells nothing of the fingerprint, and given the seed the report is g-ary randomized response (see
    `RandomizedResponse`), so the ratio of any report's probabilities under two texts is at most exp(epsilon), whatever
    the hash function does (Wang, Blocki, Li, Jha 2017, "Locally Differentially Private Protocols for Frequency
    Estimation"). The hash is strongly universal in its multipliers (see report.proto), from 64-bit
    fingerprints to 32 bits, of which g parts are made: their sizes differ by 2^-32.

    Args:
        g: How many hashes there are, 2 to 2^16.
        epsilon: Above 0.
    """

    __slots__ = ("_response", "draws", "g", "threshold")

    def __init__(self, g: int, epsilon: Fraction) -> None:
        self.g = g
        self._response = RandomizedResponse(g, epsilon)
        self.threshold = self._response.threshold
        # The multipliers are drawn ahead as signed numbers, which are the same modulo 2^64.
        decode = (
            "offset, seed, a, b, c = code\n"
            f"y = ((a * (x >> 32) + b * (x & {(1 << 32) - 1}) + c & {_MASK}) >> 32) * {g} >> 32\n"
            f"y += offset\nif y >= {g}:\n    y -= {g}\n"
            f"y = seed & {_MASK}, y"
        )
        self.draws = Draws((LocalHashing, g, epsilon), self.block, decode, width=5)

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes what independent reports take besides their fingerprints.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.

        Returns:
            The offset to add to the hash modulo g, the seed, and the hash's a, b and c under it, shape (count, 5).
        """
        stream = stream or KeyStream()
        offsets = self._response.block(count, stream)
        seeds = stream.words(count)
        columns = [column.view(np.int64) for column in (seeds, *multipliers(seeds))]
        return np.column_stack([offsets, *columns])
