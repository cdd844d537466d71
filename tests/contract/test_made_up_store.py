"""The contract, for a store that is made up here, as docs/architecture.md says how to add one."""

import pickle
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from dpmesh import Mesh, files
from dpmesh.accounting import AMOUNT
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Account, EpochKey, Ledger, Opened, Store
from dpmesh.ledger.budget import check_adoptable, check_unchanged
from dpmesh.ledger.store import account_end, decide, epoch_in_force, window_at_opening, window_in_force
from dpmesh.policy import Policy
from tests.contract.adoptions import AdoptionSuite
from tests.contract.model import LedgerModel
from tests.contract.suite import LedgerSuite, pure
from tests.support.protos import compiled


@dataclass
class State:
    """What the file holds: accounts by budget and hash, each with its window, what is debited, and the odometer."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    budgets: dict = field(default_factory=dict)
    windows: dict = field(default_factory=dict)
    accounts: dict = field(default_factory=dict)
    redeemed: dict = field(default_factory=dict)
    epoch_keys: dict = field(default_factory=dict)
    now: int = 0
    notes: list = field(default_factory=list)


class FileStore(Store):
    """Keeps everything in one file. Each call reads it and replaces it, under a lock that processes share."""

    clock = None

    def __init__(self, file):
        self._file = file
        self._budgets = ()

    @contextmanager
    def _state(self):
        try:
            with files.locked_folder(self._file.parent):
                state = pickle.loads(self._file.read_bytes()) if self._file.exists() else State()
                yield state
                files.write(self._file, pickle.dumps(state))
        except OSError as error:
            raise LedgerError(f"the ledger's file can't be used: {error.strerror}") from error

    async def open(self, budgets):
        with self._state() as state:
            for budget in budgets:
                check_unchanged(state.budgets.get(budget.name, budget), budget)
            self._take(state, budgets)
            rows = state.accounts.items()
            spent = {name for (name, _), (start, n, _) in rows if n and start == state.windows[name].start}
            others = [name for name in state.budgets if name in spent - {budget.name for budget in budgets}]
            return Opened(
                state.secret,
                tuple(state.windows[budget.name] for budget in budgets),
                tuple((state.budgets[name], state.windows[name].start) for name in others),
            )

    async def may_adopt(self, budgets):
        with self._state() as state:
            for budget in budgets:
                check_adoptable(state.budgets.get(budget.name, budget), budget)

    async def adopt(self, budgets, now):
        await self.may_adopt(budgets)
        with self._state() as state:
            self._begin(state, [now] * len(self._budgets))
            self._take(state, budgets)
            return tuple(state.windows[budget.name] for budget in budgets)

    def _take(self, state, budgets):
        self._budgets = tuple(budgets)
        for budget in budgets:
            state.budgets[budget.name] = budget
            state.windows[budget.name] = window_at_opening(state.windows.get(budget.name), budget)

    def _begin(self, state, times):
        for budget, now in zip(self._budgets, times, strict=True):
            state.windows[budget.name] = window_in_force(state.windows[budget.name], budget, now)
        return tuple(state.windows[budget.name] for budget in self._budgets)

    async def debit(self, batch):
        with self._state() as state:
            names = [budget.name for budget in self._budgets]
            windows = self._begin(state, [batch.time(i) for i in range(len(names))])
            rows = {(i, key): state.accounts.get((names[i], key), (0, 0, 0)) for i, key in batch.leased}
            debited = {a: row[1] if row[0] == windows[a[0]].start else 0 for a, row in rows.items()}
            outcome = decide(batch, windows, debited)
            for (i, key), amount in outcome.debits.items():
                total = outcome.debited[i, key]
                state.accounts[names[i], key] = (windows[i].start, total, rows[i, key][2] + amount)
            return outcome

    async def credit(self, windows, unspent):
        with self._state() as state:
            for (i, key), amount in unspent.items():
                account = (self._budgets[i].name, key)
                start, debited, lifetime = state.accounts.get(account, (0, 0, 0))
                if start > windows[i] and 0 < amount <= lifetime:
                    state.accounts[account] = (start, debited, lifetime - amount)
                elif start == windows[i] and 0 < amount <= debited:
                    state.accounts[account] = (start, debited - amount, lifetime - amount)

    async def redeem_once(self, now, redemptions):
        with self._state() as state:
            state.now = max(state.now, now)
            state.redeemed = {name: until for name, until in state.redeemed.items() if until > state.now}
            fresh = []
            for name, until in redemptions:
                fresh.append(until > state.now and name not in state.redeemed)
                if fresh[-1]:
                    state.redeemed[name] = until
            return fresh

    async def redeemed(self, names):
        with self._state() as state:
            return [name in state.redeemed for name in names]

    async def epoch_keys(self, now, lengths):
        with self._state() as state:
            latest = max([now, *[state.windows[budget.name].start * 1_000_000 for budget in self._budgets]])
            for length in lengths:
                stored, key = state.epoch_keys.get(length, (None, b""))
                number = epoch_in_force(latest, length, stored)
                state.epoch_keys[length] = number, key if number == stored else secrets.token_bytes(32)
            return [EpochKey(*state.epoch_keys[length]) for length in lengths]

    async def accounts(self, budget, account):
        with self._state() as state:
            order = list(state.budgets)
            rows = sorted(state.accounts.items(), key=lambda row: (order.index(row[0][0]), row[0][1]))
            windows = state.windows
        return [
            Account(
                name,
                key.hex(),
                start,
                account_end(start, windows[name]),
                spent,
                windows[name].cap,
                0,
                total,
            )
            for (name, key), (start, spent, total) in rows
            if budget in (None, name) and account in (None, key)
        ]

    async def record(self, note):
        with self._state() as state:
            state.notes.append(note)

    async def ping(self):
        with self._state():
            pass

    async def close(self):
        pass

    def after_fork_in_child(self):
        pass


class InOneFile:
    def store(self, place):
        return FileStore(place / "ledger")


class TestMadeUpLedger(InOneFile, AdoptionSuite, LedgerSuite):
    async def notes(self, place):
        return pickle.loads((place / "ledger").read_bytes()).notes


class TestMadeUpModel(InOneFile, LedgerModel):
    EXAMPLES = 20


async def test_a_mesh_is_handed_the_ledger_whose_charges_outlast_it(tmp_path):
    types = compiled(
        """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        double value = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}]; }"""
    )
    reading = types.Reading(id="a", value=0.5)
    async with Mesh(
        Policy(), Ledger(FileStore(tmp_path / "ledger"), [pure("unit", 1.0, window=None)])
    ) as mesh:
        assert (await mesh.release(reading)).epsilon == 1.0
    async with Mesh(
        Policy(), Ledger(FileStore(tmp_path / "ledger"), [pure("unit", 1.0, window=None)])
    ) as mesh:
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(reading)
        assert [account.spent for account in await mesh.ledger.accounts(unit=b"a")] == [AMOUNT]
