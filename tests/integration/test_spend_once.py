"""Processes that spend the same names at once, and processes that are killed while they do."""

import asyncio
import os
import random
import signal
import time

from dpmesh.ledger import Ledger, open_store
from tests.support import children

UNTIL = 1e11
ROUNDS = 20


def name(number: int) -> bytes:
    return number.to_bytes(32)


def test_a_hundred_redemptions_in_three_processes(tmp_path):
    """Each process tries every name a hundred times at once: over all of them, each name is had exactly once."""
    url, names = f"sqlite:///{tmp_path}/ledger.db", 20
    begin = time.monotonic() + 0.3

    def process() -> list[int]:
        async def run() -> list[int]:
            ledger = Ledger(open_store(url), [])
            await ledger.open()
            await asyncio.sleep(max(0.0, begin - time.monotonic()))
            won = []
            for number in range(names):
                tries = await asyncio.gather(*[ledger.redeem_once(name(number), UNTIL) for _ in range(100)])
                won.append(sum(tries))
            await ledger.close()
            return won

        return asyncio.run(run())

    started = [children.start(process) for _ in range(3)]
    won = [children.finish(child) for child in started]
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * names


def spender(url: str, pipe: int, first: int) -> None:
    """Spends one name after the other, and reports each that it has."""

    async def run() -> None:
        ledger = Ledger(open_store(url), [])
        await ledger.open()
        number = first
        while True:
            numbers = range(number, number + 4)
            won = await asyncio.gather(*[ledger.redeem_once(name(each), UNTIL) for each in numbers])
            os.write(pipe, b"".join(name(each) for each, fresh in zip(numbers, won, strict=True) if fresh))
            number += 4

    asyncio.run(run())


def test_a_name_that_somebody_has_stays_spent_wherever_the_process_is_killed(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    chance = random.Random(9)
    reported: list[bytes] = []
    for round_ in range(ROUNDS):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                spender(url, writer, round_ << 32)
            finally:
                os._exit(1)
        os.close(writer)
        data = os.read(reader, 1 << 16)  # it has begun
        time.sleep(chance.choice([0, 0.002, 0.005, 0.01]))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        while chunk := os.read(reader, 1 << 16):
            data += chunk
        os.close(reader)
        assert data
        reported += [data[i : i + 32] for i in range(0, len(data), 32)]
    assert len(set(reported)) == len(reported)

    async def again() -> list[bool]:
        ledger = Ledger(open_store(url), [])
        await ledger.open()
        won = await asyncio.gather(*[ledger.redeem_once(each, UNTIL) for each in reported])
        fresh = await ledger.redeem_once(name(1 << 255), UNTIL)
        await ledger.close()
        return [*won, not fresh]

    assert not any(asyncio.run(again()))
