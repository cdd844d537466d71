"""Local hashing: the hash that the schema documents, its uniformity over seeds, and exact privacy given a seed."""

from __future__ import annotations

import hashlib
import itertools
import struct
from fractions import Fraction
from pathlib import Path
from textwrap import dedent

import mpmath
import numpy as np
import pytest
from scipy import stats

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.local_hashing import LONGEST, LocalHashing, _first, fingerprint, multipliers, support
from dpmesh.noise.thresholds import ONE
from tests.unit.noise.exact import decoding
from tests.unit.noise.streams import KEY

SCHEMA = Path(__file__).resolve().parents[3] / "protos/dpmesh/v1/report.proto"
TEXTS = ["", "/", "/about", "é", "日本", "x" * LONGEST]


def documented():
    """H(seed, value, g), from the comment of the schema."""
    lines = [line.removeprefix("//") for line in SCHEMA.read_text().splitlines()]
    first = next(number for number, line in enumerate(lines) if "def splitmix64" in line)
    last = next(number for number, line in enumerate(lines) if "* g >> 32" in line)
    names = {"struct": struct, "hashlib": hashlib}
    exec(dedent("\n".join(lines[first : last + 1])), names)
    return names["H"]


H = documented()


def test_splitmix64_gives_its_published_numbers():
    """The first outputs for the seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64")."""
    found = [int(column[0]) for column in multipliers(np.array([1234567], np.uint64))]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("g", [2, 3, 4, 7, 56, 1000, 1 << 16])
def test_reports_and_estimates_use_the_documented_hash(g):
    law = LocalHashing(g, Fraction(1))
    decode, codes = decoding(law), law.block(60).tolist()
    for text in TEXTS:
        for code in codes:
            seed, noisy = decode(fingerprint(text), code)
            assert seed == code[1] % 2**64
            assert noisy == (H(seed, text, g) + code[0]) % g
    random = np.random.default_rng(g)
    seeds = random.integers(0, 2**64, 400, dtype=np.uint64)
    hashes = np.array([H(int(seed), TEXTS[i % 6], g) for i, seed in enumerate(seeds)], np.uint64)
    hashes[:200] = random.integers(0, g, 200)
    found = support(seeds, hashes, np.array([fingerprint(text) for text in TEXTS], np.uint64), g)
    pairs = list(zip(seeds.tolist(), hashes.tolist(), strict=True))
    assert found.tolist() == [sum(H(seed, text, g) == noisy for seed, noisy in pairs) for text in TEXTS]


@pytest.mark.parametrize("g", [2, 3, 7, 56, 1 << 16])
def test_each_hash_begins_where_the_division_has_it(g):
    """One report in 2^32 meets the end of a hash."""
    hashes = np.arange(g + 1, dtype=np.uint64)
    firsts = _first(hashes, g).tolist()
    assert firsts[0] == 0
    assert firsts[-1] == 2**32
    for y, first in enumerate(firsts[:-1]):
        assert first * g >> 32 == y
        assert y == 0 or (first - 1) * g >> 32 == y - 1


@pytest.mark.parametrize("epsilon", [Fraction(1, 1000), Fraction(1, 2), Fraction(1), Fraction(4)], ids=str)
@pytest.mark.parametrize("g", [2, 3, 5])
def test_given_a_seed_the_whole_law_is_private(g, epsilon):
    law = LocalHashing(g, epsilon)
    decode, truth = decoding(law), Fraction(law.threshold, ONE)
    worst = Fraction(0)
    for _, *seeded in law.block(20).tolist():
        tables = []
        for text in TEXTS:
            table = {}
            for offset in range(g):
                report = decode(fingerprint(text), [offset, *seeded])
                table[report] = truth if offset == 0 else (1 - truth) / (g - 1)
            assert len(table) == g
            assert sum(table.values()) == 1
            tables.append(table)
        worst = max(
            worst,
            *(
                one[report] / other[report]
                for one, other in itertools.permutations(tables, 2)
                for report in one
            ),
        )
    with mpmath.workprec(600):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        assert bound * (1 - mpmath.mpf(2) ** -60) <= mpmath.mpf(worst.numerator) / worst.denominator <= bound


def test_seeds_are_uniform_words_of_their_own_and_tell_nothing_of_offsets():
    """Of 100,000 codes: each bit of the seed, also together with the offset, within 6 deviations: 64 * 2 * 2e-9."""
    count = 100_000
    block = LocalHashing(2, Fraction(1)).block(count)
    seeds, lies = block[:, 1].view(np.uint64), block[:, 0] == 1
    assert len(set(seeds.tolist())) == count
    bits = (seeds[:, np.newaxis] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    for chosen in (np.ones(count, bool), lies):
        ones, n = bits[chosen].sum(axis=0), chosen.sum()
        assert np.all(np.abs(ones - n / 2) < 3 * np.sqrt(n))


@pytest.mark.parametrize("g", [2, 4, 9])
def test_hashes_of_two_texts_are_uniform_and_independent_over_seeds(g):
    """Chi-square over all pairs of hashes of 250,000 seeds, for six pairs of texts; each fails 1 time in 10^6."""
    seeds = KeyStream(KEY).words(250_000)
    hashes = {text: hashes_of(seeds, text, g) for text in ("", "a", "b", "item-1", "item-2")}
    for one, other in list(itertools.combinations(hashes, 2))[:6]:
        table = np.bincount(hashes[one] * g + hashes[other], minlength=g * g)
        assert stats.chisquare(table).pvalue > 1e-6


def hashes_of(seeds, text, g):
    a, b, c = multipliers(seeds)
    high, low = divmod(fingerprint(text), 1 << 32)
    return ((a * np.uint64(high) + b * np.uint64(low) + c) >> np.uint64(32)).astype(np.int64) * g >> 32


@pytest.mark.parametrize(
    "text", ["x" * (LONGEST + 1), "é" * (LONGEST // 2 + 1), "日" * LONGEST, "x" * (1 << 20)]
)
def test_a_text_that_is_too_long_is_the_empty_one(text):
    assert fingerprint(text) == fingerprint("")


def test_a_text_of_the_largest_length_is_one_of_its_own():
    assert fingerprint("é" * (LONGEST // 2)) == int.from_bytes(
        hashlib.sha256(("é" * (LONGEST // 2)).encode()).digest()[:8], "big"
    )


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_block_shapes(count):
    assert LocalHashing(4, Fraction(1)).block(count).shape == (count, 5)
    nothing = np.empty(0, np.uint64)
    assert support(nothing, nothing, np.array([1, 2], np.uint64), 4).tolist() == [0, 0]
