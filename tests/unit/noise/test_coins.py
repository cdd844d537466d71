"""Lazy comparisons have the law of full ones."""

import numpy as np
import pytest

from dpmesh.noise.coins import Coins
from dpmesh.noise.entropy import KeyStream
from tests.unit.noise.streams import KEY, Script, Tape

THRESHOLDS = [0, 1, 2**112, 2**127, 61680 * 2**112 + 12345, 2**128 - 1, 2**128 // 3]


def reference(thresholds, count, tape):
    """Python integers and 128-bit comparisons: the first 16 bits of all uniforms, then the rest of the ties."""
    first = np.frombuffer(tape.take(2 * len(thresholds) * count), np.uint16).reshape(-1, count).tolist()
    heads = []
    for words, threshold in zip(first, thresholds, strict=True):
        for word in words:
            uniform = word << 112
            if word == threshold >> 112:
                uniform |= int.from_bytes(tape.take(14), "big")
            heads.append(uniform < threshold)
    return np.array(heads).reshape(len(thresholds), count)


def test_known_answer_from_a_fixed_key():
    heads = Coins(THRESHOLDS).toss(50_000, KeyStream(KEY))
    assert np.array_equal(heads, reference(THRESHOLDS, 50_000, Tape()))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_injected_ties_are_decided_by_the_lower_112_bits(threshold):
    high, low = np.uint16(threshold >> 112), threshold & (2**112 - 1)
    for rest in {0, max(low - 1, 0), low, min(low + 1, 2**112 - 1), 2**112 - 1}:
        script = Script(high.tobytes() + rest.to_bytes(14, "big"))
        assert Coins([threshold]).toss(1, script)[0, 0] == (rest < low)
        assert not script.data


def test_no_bits_are_drawn_without_a_tie():
    threshold = 1000 << 112
    assert Coins([threshold]).toss(1, Script(np.uint16(999).tobytes()))[0, 0]
    assert not Coins([threshold]).toss(1, Script(np.uint16(1001).tobytes()))[0, 0]


def test_several_ties_keep_their_places():
    thresholds = [5 << 112 | 7, 9 << 112 | 7]
    words = np.array([[5, 4, 5], [9, 9, 10]], np.uint16)
    rest = [8, 6, 6, 7]  # (0,0) tails, (0,2) heads, (1,0) heads, (1,1) tails
    script = Script(words.tobytes() + b"".join(r.to_bytes(14, "big") for r in rest))
    assert Coins(thresholds).toss(3, script).tolist() == [[False, True, True], [True, False, False]]
