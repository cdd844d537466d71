"""Processes that are killed at random moments, and processes that share one file.

Every charge that returned is reported through a pipe before the next one begins. Whatever happens, the file must hold
at least as much as was reported, and never more than the cap.
"""

import asyncio
import contextlib
import os
import random
import select
import signal
import struct
import time
from collections import Counter

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, account_hash, inspect, open_store
from tests.support import children

UNIT = Budget("unit", epsilon=2.0, delta=0.0, accounting=Accounting.PURE, window=None)
GLOBAL = Budget("all", "global", 1e6, 0.0, Accounting.PURE, window=None)
BUDGETS = [UNIT, GLOBAL]
ROUNDS = 30
Processes = list[tuple[int, int]]  # pid, and the pipe with its reports
RECORD = struct.Struct("<BIQ")  # budget, unit, amount


def holder(url: str, pipe: int, seed: int, units: int) -> None:
    """Charges at random, several at a time, and reports what was released."""
    chance = random.Random(seed)

    async def sender(ledger: Ledger) -> None:
        while True:
            unit, cost = chance.randrange(units), chance.randint(1, AMOUNT // 50)
            charges = [(0, unit.to_bytes(4, "big"), cost), (1, b"", cost)]
            try:
                await ledger.charge(charges)
            except BudgetExhaustedError:
                continue
            os.write(pipe, b"".join(RECORD.pack(i, unit, amount) for i, _, amount in charges))

    async def run() -> None:
        ledger = Ledger(open_store(url), BUDGETS)
        await ledger.open()
        await asyncio.gather(*[sender(ledger) for _ in range(8)])

    asyncio.run(run())


def spawn(url: str, seed: int, units: int) -> tuple[int, int]:
    """Starts a holder; returns its pid and the pipe with its reports."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            holder(url, writer, seed, units)
        finally:
            os._exit(1)
    os.close(writer)
    return pid, reader


def watch(
    processes: Processes, seconds: float, reports: dict[int, bytearray], until_first: bool = False
) -> None:
    """Collects reports for some time, until all pipes end, or until something arrives."""
    end, left = time.monotonic() + seconds, [reader for _, reader in processes]
    while left and (wait := end - time.monotonic()) > 0:
        for reader in select.select(left, [], [], wait)[0]:
            chunk = os.read(reader, 1 << 16)
            reports[reader] += chunk
            if not chunk:
                left.remove(reader)
            elif until_first:
                return


def kill(processes: Processes, reports: dict[int, bytearray]) -> None:
    """Kills holders where they stand, and collects the rest of their reports."""
    for pid, _ in processes:
        os.kill(pid, signal.SIGKILL)
    statuses = [os.waitpid(pid, 0)[1] for pid, _ in processes]
    assert all(os.WTERMSIG(status) == signal.SIGKILL for status in statuses), "a holder died by itself"
    watch(processes, 60, reports)
    for _, reader in processes:
        os.close(reader)


def count(released: Counter[tuple[int, int]], reports: bytearray) -> None:
    for budget, unit, amount in RECORD.iter_unpack(reports):
        released[budget, unit if budget == 0 else -1] += amount


def check(url: str, released: Counter[tuple[int, int]]) -> None:
    """Compares what was reported with the file."""
    snapshot = inspect(url)
    debited = {(a.budget, a.account): a.spent for a in snapshot.accounts}
    assert all(a.spent <= a.cap for a in snapshot.accounts)
    for (budget, unit), amount in released.items():
        key = b"" if unit < 0 else unit.to_bytes(4, "big")
        assert amount <= debited[BUDGETS[budget].name, account_hash(snapshot.secret, key).hex()]


def test_what_is_released_is_debited_wherever_a_process_is_killed(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    chance = random.Random(7)
    released: Counter[tuple[int, int]] = Counter()
    for round_ in range(ROUNDS):
        processes = [spawn(url, 100 * round_ + i, units=20 * (round_ + 1)) for i in range(1 + round_ % 2)]
        reports = {reader: bytearray() for _, reader in processes}
        if round_ % 3:  # in full swing; else perhaps while the file is made or opened
            watch(processes, 60, reports, until_first=True)
        watch(processes, chance.choice([0, 0.001, 0.005, 0.01, 0.02, 0.04]), reports)
        kill(processes, reports)
        assert any(reports.values()) or not round_ % 3
        for each in reports.values():
            count(released, each)
        if os.path.exists(tmp_path / "ledger.db"):
            check(url, released)

    async def go_on() -> None:
        ledger = Ledger(open_store(url), BUDGETS)
        await ledger.open()
        await ledger.charge([(0, b"fresh", UNIT.cap), (1, b"", 1)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"fresh", 1)])
        await ledger.close()

    asyncio.run(go_on())


def test_a_file_is_made_completely_or_not_at_all(tmp_path):
    chance = random.Random(11)
    for round_ in range(20):
        place = tmp_path / str(round_)
        processes = [spawn(f"sqlite:///{place}/ledger.db", i, units=5) for i in range(2)]
        time.sleep(chance.uniform(0, 0.012))
        kill(processes, {reader: bytearray() for _, reader in processes})

        async def use(url=f"sqlite:///{place}/ledger.db") -> None:
            ledger = Ledger(open_store(url), BUDGETS)
            await ledger.open()
            await ledger.charge([(0, b"fresh", UNIT.cap)])
            await ledger.close()

        asyncio.run(use())


@pytest.mark.parametrize("cost", [AMOUNT // 50, 77_777_777])
def test_processes_that_share_a_file_never_overspend_together(tmp_path, cost):
    url = f"sqlite:///{tmp_path}/ledger.db"

    def process() -> int:
        async def run() -> int:
            ledger = Ledger(open_store(url), BUDGETS)
            await ledger.open()
            admitted = 0

            async def sender() -> None:
                nonlocal admitted
                with contextlib.suppress(BudgetExhaustedError):
                    while True:
                        await ledger.charge([(1, b"", 1), (0, b"shared", cost)])
                        admitted += 1

            await asyncio.gather(*[sender() for _ in range(8)])
            await ledger.close()
            return admitted

        return asyncio.run(run())

    started = [children.start(process) for _ in range(4)]
    admitted = sum(children.finish(one) for one in started)
    snapshot = inspect(url)
    spent = {a.budget: a.spent for a in snapshot.accounts}
    # All leases were returned, so the file holds what was released, to the last charge.
    assert spent == {"unit": admitted * cost, "all": admitted}
    # Each process goes on until it is refused, and then holds less than one charge.
    assert UNIT.cap // cost - 4 <= admitted <= UNIT.cap // cost

    async def the_rest() -> int:
        ledger = Ledger(open_store(url), BUDGETS)
        await ledger.open()
        for _ in range(UNIT.cap // cost - admitted):
            await ledger.charge([(0, b"shared", cost)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"shared", cost)])
        await ledger.close()

    asyncio.run(the_rest())


def test_a_process_that_stops_while_it_writes_delays_the_others_and_no_more(tmp_path):
    """A frozen holder of the file's lock: the others are refused in time, and served when it is gone."""
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def run() -> None:
        ledger = Ledger(open_store(url), BUDGETS, timeout=0.3)
        await ledger.open()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                store = open_store(url)
                asyncio.run(store.open(BUDGETS))
                store._connection.execute("BEGIN IMMEDIATE")
                os.write(writer, b".")
                time.sleep(60)
            finally:
                os._exit(1)
        os.close(writer)
        try:
            assert await asyncio.to_thread(os.read, reader, 1) == b"."
            results = await asyncio.gather(
                *[ledger.charge([(0, bytes([i]), 1)]) for i in range(50)], return_exceptions=True
            )
            assert all(isinstance(result, LedgerError) for result in results)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(LedgerError):
                    await ledger.charge([(0, b"b", 1)])
                    break
        await ledger.close()

    asyncio.run(run())
