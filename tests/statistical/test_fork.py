"""Parent and children, and threads, never hand out the same noise.

False alarms: two vectors of 8 draws agree by chance with a probability far below 1e-12, whatever the mechanism.
"""

import json
import os
import threading
from fractions import Fraction

import pytest

from dpmesh.noise import categorical, numeric
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy.codegen.source import draw_function

CHILDREN = 64
SIZE = 1 << 40


def mechanisms():
    """One of each, with a huge range so that single draws hardly ever agree."""
    for kind in NumericKind:
        rho = Fraction(1, 10) if kind is NumericKind.DISCRETE_GAUSSIAN else None
        mechanism = numeric.make(kind, SIZE, SIZE, None if rho else Fraction(1), rho=rho)
        yield kind.value, draw_function(mechanism.draws)
    yield "k-rr", draw_function(categorical.make(2**31, Fraction(1, 1000)).draws)


# Two of Duchi's outputs, which are near two points only, agree with probability 0.26, and two of Hybrid's, which is
# Duchi with probability 0.6, with 0.1: 64 of them make two vectors that agree with a probability below 1e-37.
DRAWS = {"duchi": 64, "hybrid": 64}


@pytest.mark.parametrize("warm", [True, False], ids=["full-pools", "empty-pools"])
def test_64_forked_children_hand_out_64_different_noise_vectors(warm):
    draws = dict(mechanisms())
    if warm:
        for draw in draws.values():
            draw(SIZE // 2 % 2**31)
    readers, pids = [], []
    for _ in range(CHILDREN):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(writer, json.dumps(_vectors(draws)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append(reader)
        pids.append(pid)
    answers = [_vectors(draws)]
    for pid, reader in zip(pids, readers, strict=True):
        with os.fdopen(reader) as pipe:
            answers.append(json.loads(pipe.read()))
        os.waitpid(pid, 0)
    for name in draws:
        assert len({tuple(answer[name]) for answer in answers}) == CHILDREN + 1, name


def _vectors(draws):
    return {
        name: [draw(SIZE // 2 if name != "k-rr" else 7) for _ in range(DRAWS.get(name, 8))]
        for name, draw in draws.items()
    }


def test_threads_never_share_a_draw():
    """Any of 32,000 draws of scale 2^40 / (1/1000) agree by chance with a probability of 1.2e-7."""
    draw = draw_function(numeric.make(NumericKind.DISCRETE_LAPLACE, SIZE, SIZE, Fraction(1, 1000)).draws)
    taken = [[] for _ in range(8)]

    def work(mine):
        mine.extend(draw(0) for _ in range(4000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [y for mine in taken for y in mine]
    assert len(everything) == len(set(everything)) == 32_000
