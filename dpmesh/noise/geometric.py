"""The thresholds of a geometric variable's binary digits."""

from __future__ import annotations

import math
from fractions import Fraction

from dpmesh.noise.thresholds import exponential, logistics


def digits(scale: Fraction) -> list[int]:
    """The thresholds of one geometric variable, P(g) = (1-a) a^g with a = exp(-1/scale).

    Its lowest K binary digits are independent, digit k is 1 with probability 1/(1+exp(2^k/scale)), and what is above
    them is again geometric, with exp(-2^K/scale) for a. K is the smallest number with 2^K >= 10 scale, so all
    probabilities are well above 2^-128 and what is above the digits is nearly always 0.

    Args:
        scale: Above 0.

    Returns:
        128-bit thresholds: first that of one more carry above the digits, then those of digits K-1 to 0.
    """
    count = max(math.ceil(10 * scale) - 1, 0).bit_length()
    # Rounded up: a carry that is too rare would overstate the ratio of neighbouring outcomes.
    carry = exponential(2**count / scale) + 1
    return [carry, *reversed(logistics(1 / scale, count))]
