"""Low bits: which floats leave, of two values that differ in the ninth digit, and of textbook noise.

Source of the attack: Mironov 2012, "On significance of the least significant bits for differential privacy". Textbook
noise is `scale * log(uniform)` in floating point: of two values, often only one can have led to an output.
"""

from __future__ import annotations

import math

import numpy as np

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding
from tests.attacks.worlds import HIDDEN, NUM, config, received
from tests.support.protos import compiled

EPSILON = 1.0
VALUES = (50.0, 50.00000001)
SCALE = 100.0 / EPSILON
OUTPUTS = 4
"""How many outputs for one value each trial shows."""
TYPES = compiled(
    f"""message M {{ string id = 1 {HIDDEN};
      double laplace = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: {EPSILON} mechanism: DISCRETE_LAPLACE}}];
      double auto = 3 [{NUM} = {{lower: 0 upper: 100 epsilon: {EPSILON}}}]; }}"""
)


def could_come_from(output: float, value: float) -> bool:
    """Whether textbook noise on a value can be this output: whether a uniform multiple of 2^-53 leads to it."""
    noise = output - value
    middle = round(math.exp(-abs(noise) / SCALE) * 2**53)
    for step in range(max(1, middle - 4), min(2**53, middle + 4) + 1):
        drawn = -SCALE * math.log(step / 2**53)
        if value + math.copysign(drawn, noise) == output:
            return True
    return False


def features(output: float) -> tuple:
    """Which values can have led to an output, its last bits, and the place of its last bit."""
    mantissa = int(math.frexp(output)[0] * 2**53)
    last = (mantissa & -mantissa).bit_length()
    return (
        tuple(could_come_from(output, value) for value in VALUES),
        mantissa & 63,
        last,
        math.frexp(output)[1] + last,
    )


def in_trials(shown: list[tuple]) -> list[tuple]:
    """The features of OUTPUTS outputs each."""
    return [sum(shown[at : at + OUTPUTS], ()) for at in range(0, len(shown), OUTPUTS)]


def textbook(value: float, count: int, seed: int) -> list[float]:
    """Outputs of noise as textbooks write it."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 2**53, count).tolist()
    signs = rng.choice([-1.0, 1.0], count).tolist()
    return [value + sign * -SCALE * math.log(step / 2**53) for step, sign in zip(steps, signs, strict=True)]


async def protected(count: int) -> Distinguished:
    """Tells the two values apart by all that their outputs' bits show."""
    worlds = []
    async with dpmesh.open(config()) as mesh:
        for value in VALUES:
            message = TYPES.M(id="d", laplace=value, auto=value)
            seen = [(await received(mesh, message))[0] for _ in range(count * OUTPUTS)]
            shown = [features(m.laplace) + features(m.auto) + (m.laplace, m.auto) for m in seen]
            worlds.append(in_trials(shown))
    return told_apart(*worlds)


async def findings(count: int) -> list[Finding]:
    """`count` trials in either world, half of them to learn from; textbook noise in place of no protection."""
    worlds = [
        in_trials([features(output) for output in textbook(value, 400 * OUTPUTS, seed)])
        for seed, value in enumerate(VALUES, 1)
    ]
    claim = "the values are one point of the public grid (unprotected: textbook noise)"
    name = "low bits: two values that differ in the ninth digit"
    return [Finding(name, 0.0, claim, await protected(count), told_apart(*worlds))]
