"""`dpmesh ledger`: what it does to real ledger files, whole, tampered with and restored."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import time
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.cli.options.accounts import AccountSelector
from dpmesh.errors import LedgerError
from dpmesh.ledger import Budget, Ledger, open_store

URL = "sqlite:///ledger.db"
BUDGETS = [
    Budget("daily", "unit", 8.0, 1e-6, Accounting.ZCDP, 86_400.0),
    Budget("lifetime", "unit", 100.0, 0.0, Accounting.PURE, None),
]
COMMANDS = ["migrate", "verify", "checkpoint", "import", "prune", "accept", "log"]


async def charge(*units: bytes) -> None:
    """Charges each unit, as a holder of its own."""
    ledger = Ledger(open_store(URL), BUDGETS, clock=lambda: time.time())
    await ledger.open()
    try:
        for unit in units:
            await ledger.charge([(0, unit, AMOUNT // 100), (1, unit, AMOUNT)])
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(workplace: Path) -> None:
    """Three units, charged by two holders."""
    await charge(b"unit-1", b"unit-2")
    await charge(b"unit-1", b"unit-3")


@cache
def rsa_key() -> Any:
    """A key of another kind, which takes long to find."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 2048)


def tamper(statement: str, *values: object) -> None:
    """Changes the file behind everybody's back, checks and all."""
    with closing(sqlite3.connect("ledger.db")) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement, values)


# What all commands share.


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_every_command_has_help_with_an_example(dpmesh, command: list[str]) -> None:
    ran = dpmesh("ledger", *command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "Example: dpmesh ledger" in ran.out


def test_without_a_command_there_is_help_and_exit_2(dpmesh) -> None:
    ran = dpmesh("ledger")
    assert ran.code == 2
    assert all(name in ran.out for name in COMMANDS)


REQUIRED = {
    "checkpoint": ["--key", "k", "--new-key", "--output", "c.json"],
    "prune": ["--keep", "400d"],
    "accept": ["--reason", "restored", "--by", "bob", "--yes"],
}
ALL_BUT_IMPORT = [[name, *REQUIRED.get(name, [])] for name in COMMANDS if name != "import"]


@pytest.mark.parametrize("command", ALL_BUT_IMPORT, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory:", "memory:"),
        ("mysql://x", "mysql://x"),
        ("sqlite:///garbage.db", "garbage.db"),
        ("sqlite:///other.db", "not a dpmesh ledger"),
        ("sqlite:///folder", "not a plain file"),
    ],
)
def test_what_is_no_ledger(dpmesh, write, command: list[str], url: str, words: str) -> None:
    write("garbage.db", "this is no database, however long one reads it" * 100)
    with closing(sqlite3.connect("other.db")) as connection, connection:
        connection.execute("CREATE TABLE accounts (x)")
    Path("folder").mkdir()
    before = sorted(os.listdir())
    ran = dpmesh("ledger", *command, "--ledger", url)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("dpmesh: ")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "command", [c for c in ALL_BUT_IMPORT if c[0] != "migrate"], ids=lambda command: command[0]
)
def test_a_missing_ledger_is_not_made(dpmesh, command: list[str]) -> None:
    ran = dpmesh("ledger", *command, "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert "there is no ledger at" in ran.err
    assert os.listdir() == []


@pytest.mark.parametrize("command", [["verify"], ["log"], ["checkpoint", "--key", "k", "--output", "c.json"]])
def test_reading_changes_nothing(dpmesh, ledger: None, command: list[str]) -> None:
    before = Path("ledger.db").read_bytes()
    dpmesh("ledger", *command, "--ledger", URL)
    assert Path("ledger.db").read_bytes() == before
    assert sorted(os.listdir()) == ["ledger.db", "ledger.db-witness"]


def test_the_ledger_of_the_configuration(dpmesh, ledger: None, write) -> None:
    write("dpmesh.toml", f'[ledger]\nurl = "{URL}"\n')
    assert dpmesh("ledger", "verify").code == 0


# migrate


def test_migrate_makes_a_ledger_once(dpmesh) -> None:
    assert dpmesh("ledger", "migrate", "--ledger", URL)[:2] == (0, "tables: made, version 5\n")
    assert stat.S_IMODE(Path("ledger.db").stat().st_mode) == 0o600
    assert dpmesh("ledger", "migrate", "--ledger", URL)[:2] == (0, "tables: version 5, up to date\n")
    ran = dpmesh("ledger", "migrate", "--ledger", URL, "--json")
    assert json.loads(ran.out) == {"before": 5, "after": 5}


def test_migrate_keeps_what_is_spent(dpmesh, ledger: None) -> None:
    before = dpmesh("budget", "export", "--ledger", URL).out
    assert dpmesh("ledger", "migrate", "--ledger", URL).code == 0
    assert dpmesh("budget", "export", "--ledger", URL).out == before


# verify and checkpoint


def test_a_whole_ledger(dpmesh, ledger: None) -> None:
    ran = dpmesh("ledger", "verify", "--ledger", URL)
    assert ran == (0, "whole: 2 chains, 4 entries, 6 accounts that are what the log says\n", "")
    found = json.loads(dpmesh("ledger", "verify", "--ledger", URL, "--json").out)
    assert found == {
        "whole": True,
        "chains": 2,
        "entries": 4,
        "accounts": 6,
        "pruned_before": 0,
        "checkpoint": None,
        "findings": [],
    }


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE accounts SET debited = debited - 1 WHERE budget = 2 AND debited > 1000000000", "debited is"),
        ("UPDATE accounts SET lifetime = 0 WHERE budget = 1", "debited in all windows"),
        ("UPDATE accounts SET granted = 5", "granted is"),
        ("DELETE FROM accounts WHERE budget = 1", "it is gone"),
        ("DELETE FROM charges WHERE seq = 1", "entry 1 is missing"),
        ("DELETE FROM charges WHERE seq = 2", "entry 2"),
        ("UPDATE charges SET body = CAST(substr(body, 1, 20) || x'00' AS BLOB) WHERE seq = 1", "entry 1"),
        ("UPDATE chains SET hash = zeroblob(32)", "is not the last one"),
        ("UPDATE chains SET pruned_seq = 1", ""),
    ],
)
def test_findings(dpmesh, ledger: None, statement: str, words: str) -> None:
    tamper(statement)
    ran = dpmesh("ledger", "verify", "--ledger", URL)
    assert (ran.code, ran.err) == (1, "")
    assert words in ran.out
    assert all(line.startswith(("chain ", "account ")) for line in ran.out.splitlines())
    assert "unit-" not in ran.out
    as_json = dpmesh("ledger", "verify", "--ledger", URL, "--json")
    assert as_json.code == 1
    found = json.loads(as_json.out)
    assert not found["whole"]
    assert found["findings"] == ran.out.splitlines()


def test_a_checkpoint_finds_what_was_rewritten_consistently(dpmesh, ledger: None) -> None:
    shutil.copy("ledger.db", "older.db")
    shutil.copy("ledger.db-witness", "older.db-witness")
    asyncio.run(charge(b"unit-4"))
    ran = dpmesh("ledger", "checkpoint", "--key", "a.key", "--new-key", "--output", "c.json", "--ledger", URL)
    assert ran == (0, "c.json: 3 chains, 5 entries\n", "")
    signed = ["--checkpoint", "c.json", "--public-key", "a.key.pub", "--ledger", URL]
    asyncio.run(charge(b"unit-5"))
    ran = dpmesh("ledger", "verify", *signed)
    assert ran.code == 0
    assert "nothing was changed since the checkpoint of 20" in ran.out
    assert json.loads(dpmesh("ledger", "verify", *signed, "--json").out)["checkpoint"] > 0
    shutil.copy("older.db", "ledger.db")
    shutil.copy("older.db-witness", "ledger.db-witness")
    assert dpmesh("ledger", "verify", "--ledger", URL).code == 0  # by itself it is whole
    ran = dpmesh("ledger", "verify", *signed)
    assert (ran.code, ran.err) == (1, "")
    assert "it is gone, and at the checkpoint it had 1 entries" in ran.out


def test_a_checkpoint_of_another_ledger(dpmesh, ledger: None) -> None:
    dpmesh("ledger", "checkpoint", "--key", "a.key", "--new-key", "--output", "c.json", "--ledger", URL)
    dpmesh("ledger", "migrate", "--ledger", "sqlite:///new.db")
    signed = ["--checkpoint", "c.json", "--public-key", "a.key.pub"]
    ran = dpmesh("ledger", "verify", *signed, "--ledger", "sqlite:///new.db")
    assert (ran.code, ran.out) == (1, "the checkpoint is of another ledger\n")


def test_a_checkpoint_that_was_altered_or_signed_by_another(dpmesh, ledger: None) -> None:
    for name in ("a", "b"):
        made = ["--key", f"{name}.key", "--new-key", "--output", f"{name}.json", "--ledger", URL]
        assert dpmesh("ledger", "checkpoint", *made).code == 0
    text = Path("a.json").read_text()
    Path("altered.json").write_text(text.replace('"time": ', '"time": 1'))
    for file, key in (("altered.json", "a.key.pub"), ("b.json", "a.key.pub")):
        ran = dpmesh("ledger", "verify", "--checkpoint", file, "--public-key", key, "--ledger", URL)
        assert (ran.code, ran.err) == (1, "")
        assert ran.out == f"{file}: the checkpoint was altered, or another key signed it\n"
        ran = dpmesh("ledger", "verify", "--checkpoint", file, "--public-key", key, "--ledger", URL, "--json")
        assert (json.loads(ran.out)["whole"], json.loads(ran.out)["checkpoint"]) == (False, None)


def test_a_key_is_made_once_and_for_its_owner(dpmesh, ledger: None) -> None:
    made = ["ledger", "checkpoint", "--key", "a.key", "--ledger", URL, "--output"]
    ran = dpmesh(*made, "c.json")
    assert (ran.code, ran.out) == (2, "")
    assert "a.key: can't be read" in ran.err
    assert dpmesh(*made, "c.json", "--new-key").code == 0
    assert stat.S_IMODE(Path("a.key").stat().st_mode) == 0o600
    assert Path("a.key.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")
    key = Path("a.key").read_bytes()
    assert dpmesh(*made, "d.json", "--new-key").code == 0
    assert dpmesh(*made, "e.json").code == 0
    assert Path("a.key").read_bytes() == key
    for file in ("c.json", "d.json", "e.json"):
        signed = ["--checkpoint", file, "--public-key", "a.key.pub", "--ledger", URL]
        assert dpmesh("ledger", "verify", *signed).code == 0


def test_nothing_is_overwritten(dpmesh, ledger: None, write) -> None:
    made = ["ledger", "checkpoint", "--ledger", URL, "--new-key"]
    write("c.json", "old")
    write("b.key.pub", "old")
    ran = dpmesh(*made, "--key", "a.key", "--output", "c.json")
    assert ran.code == 2
    assert "c.json is there already" in ran.err
    ran = dpmesh(*made, "--key", "b.key", "--output", "d.json")
    assert ran.code == 2
    assert "b.key.pub is there already" in ran.err
    assert Path("c.json").read_text() == Path("b.key.pub").read_text() == "old"
    assert sorted(os.listdir()) == ["b.key.pub", "c.json", "ledger.db", "ledger.db-witness"]


def test_a_key_that_can_not_be_written_leaves_nothing(dpmesh, ledger: None, write) -> None:
    made = ["ledger", "checkpoint", "--ledger", URL, "--new-key"]
    ran = dpmesh(*made, "--key", "no/such/a.key", "--output", "c.json")
    assert (ran.code, ran.out) == (2, "")
    assert "can't be written" in ran.err
    assert dpmesh(*made, "--key", "a.key", "--output", "no/such/c.json").code == 2
    assert not Path("c.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "--checkpoint", "a.json"], "go together"),
        (["verify", "--public-key", "a.key.pub"], "go together"),
        (["verify", "--checkpoint", "none", "--public-key", "a.key.pub"], "none: can't be read"),
        (["verify", "--checkpoint", "a.json", "--public-key", "none"], "none: can't be read"),
        (["verify", "--checkpoint", "a.json", "--public-key", "a.key"], "not an Ed25519 public key"),
        (["verify", "--checkpoint", "a.json", "--public-key", "rsa.pub"], "not an Ed25519 public key"),
        (["verify", "--checkpoint", "a.key", "--public-key", "a.key.pub"], "not a checkpoint"),
        (["verify", "--checkpoint", "ledger.db", "--public-key", "a.key.pub"], "not a checkpoint"),
        (["checkpoint", "--key", "a.key.pub", "--output", "x.json"], "not an Ed25519 private key"),
        (["checkpoint", "--key", "rsa", "--output", "x.json"], "not an Ed25519 private key"),
        (["checkpoint", "--key", "locked", "--output", "x.json"], "has a password"),
        (["checkpoint", "--key", "a.key"], "--output"),
        (["checkpoint", "--output", "x.json"], "--key"),
    ],
)
def test_wrong_keys_and_files(dpmesh, ledger: None, arguments: list[str], words: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    made = ["--key", "a.key", "--new-key", "--output", "a.json", "--ledger", URL]
    assert dpmesh("ledger", "checkpoint", *made).code == 0
    other = rsa_key()
    Path("rsa").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    Path("rsa.pub").write_bytes(public)
    locked = ed25519.Ed25519PrivateKey.generate()
    how = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    Path("locked").write_bytes(locked.private_bytes(*how))
    ran = dpmesh("ledger", *arguments, "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err
    assert not Path("x.json").exists()


# prune


def test_prune(dpmesh, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    with monkeypatch.context() as past:
        past.setattr(time, "time", lambda: now - 500 * 86_400)
        asyncio.run(charge(b"unit-1", b"unit-2"))
    asyncio.run(charge(b"unit-1"))
    before = dpmesh("budget", "export", "--ledger", URL).out
    ran = dpmesh("ledger", "prune", "--keep", "400d", "--ledger", URL)
    assert ran == (0, "pruned: 2 entries\n", "")
    ran = dpmesh("ledger", "prune", "--keep", "400d", "--ledger", URL, "--json")
    assert json.loads(ran.out) == {"pruned": 0}
    assert dpmesh("budget", "export", "--ledger", URL).out == before
    ran = dpmesh("ledger", "verify", "--ledger", URL)
    assert ran.code == 0
    assert "UTC entries may be pruned" in ran.out
    assert len(dpmesh("ledger", "log", "--json", "--ledger", URL).out.splitlines()) == 1


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("lifetime", "--keep"),
        ("400", "--keep: '400' is not a"),
        ("nan", "--keep: 'nan' is not a"),
        ("-1d", "--keep"),
        ("0d", "--keep"),
        ("", "--keep"),
        ("23h", "--keep must be at least 86400s, the window of 'daily'"),
    ],
)
def test_prune_takes_a_time_that_covers_the_windows(dpmesh, ledger: None, keep: str, words: str) -> None:
    ran = dpmesh("ledger", "prune", "--keep", keep, "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert len(dpmesh("ledger", "log", "--json", "--ledger", URL).out.splitlines()) == 4


def test_keeping_longer_than_there_was_time_prunes_nothing(dpmesh, ledger: None) -> None:
    assert dpmesh("ledger", "prune", "--keep", "99999999d", "--ledger", URL).out == "pruned: 0 entries\n"


# accept


@pytest.fixture
def restored(ledger: None) -> None:
    """An older copy in the place of the ledger."""
    shutil.copy("ledger.db", "older.db")
    asyncio.run(charge(b"unit-1"))
    shutil.copy("older.db", "ledger.db")


def test_an_older_copy_is_refused_until_it_is_accepted(dpmesh, restored: None) -> None:
    with pytest.raises(LedgerError, match="older copy"):
        asyncio.run(charge(b"unit-1"))
    text = ["--reason", "the backup of Monday", "--by", "bob"]
    ran = dpmesh("ledger", "accept", *text, "--ledger", URL)
    assert ran.code == 2
    assert "An older copy of a ledger has forgotten" in ran.out
    assert ran.out.endswith("Lifetime budgets here: lifetime\n")
    note, refusal = ran.err.splitlines()
    assert note.startswith("dpmesh: note: ")
    assert "older copy" in note
    assert refusal == "dpmesh: nothing was done: read the above, and add --yes"
    with pytest.raises(LedgerError, match="older copy"):
        asyncio.run(charge(b"unit-1"))
    ran = dpmesh("ledger", "accept", *text, "--yes", "--ledger", URL)
    assert (ran.code, ran.err) == (0, "")
    assert "goes on in the window after the current one" in ran.out
    assert "may have been charged more than the ledger knows: lifetime." in ran.out
    asyncio.run(charge(b"unit-1"))
    assert dpmesh("ledger", "verify", "--ledger", URL).code == 0
    (entry,) = dpmesh("ledger", "log", "--grants", "--json", "--ledger", URL).out.splitlines()
    found = json.loads(entry)
    assert (found["kind"], found["by"], found["reason"]) == ("accept", "bob", "the backup of Monday")
    assert "accept" in dpmesh("ledger", "log", "--grants", "--ledger", URL).out


def test_verify_does_not_call_an_older_copy_whole(dpmesh, restored: None) -> None:
    """Its chains and accounts fit, and whoever looks at the exit code alone has to learn of it too."""
    ran = dpmesh("ledger", "verify", "--ledger", URL)
    assert ran.code == 1
    assert "is an older copy of itself, as its witness shows" in ran.out
    found = json.loads(dpmesh("ledger", "verify", "--json", "--ledger", URL).out)
    assert (found["whole"], len(found["findings"])) == (False, 1)


@pytest.mark.parametrize(
    ("name", "why"), [(bytes(16), "it was overwritten while in use"), (b"x" * 16, "of another ledger")]
)
def test_verify_tells_what_a_witness_distrusts(dpmesh, ledger: None, name: bytes, why: str) -> None:
    witness = Path("ledger.db-witness")
    witness.write_bytes(name + witness.read_bytes()[16:])
    ran = dpmesh("ledger", "verify", "--ledger", URL)
    assert ran.code == 1
    assert why in ran.out


def test_verify_takes_a_copy_without_a_witness(dpmesh, ledger: None) -> None:
    """As auditors read one."""
    shutil.copy("ledger.db", "copy.db")
    assert dpmesh("ledger", "verify", "--ledger", "sqlite:///copy.db").code == 0


def test_accept_json(dpmesh, restored: None) -> None:
    ran = dpmesh("ledger", "accept", "--reason", "r", "--by", "b", "--yes", "--json", "--ledger", URL)
    assert json.loads(ran.out) == {"accepted": True, "lifetime": ["lifetime"], "ahead": []}


def test_there_is_nothing_to_accept(dpmesh, ledger: None) -> None:
    ran = dpmesh("ledger", "accept", "--reason", "r", "--by", "b", "--yes", "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert "nothing to accept" in ran.err


@pytest.mark.parametrize("reason", ["", " ", "a\nb", "x" * 501])
def test_accept_needs_a_reason(dpmesh, restored: None, reason: str) -> None:
    ran = dpmesh("ledger", "accept", "--reason", reason, "--by", "b", "--yes", "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert "--reason must be 1 to 500 printable characters" in ran.err
    with pytest.raises(LedgerError, match="older copy"):
        asyncio.run(charge(b"unit-1"))


# log


def test_log(dpmesh, ledger: None) -> None:
    granted = ["--budget", "lifetime", "--to", "120", "--reason", "ticket 7", "--by", "alice"]
    assert dpmesh("budget", "grant", "unit-1", *granted, "--ledger", URL).code == 0
    ran = dpmesh("ledger", "log", "--ledger", URL)
    assert (ran.code, ran.err) == (0, "")
    head, *lines = ran.out.splitlines()
    assert head.split() == ["time", "(UTC)", "kind", "chain", "number", "accounts", "amounts"]
    assert len(lines) == 5
    debits = [line for line in lines if " debit " in line]
    assert all(line.endswith("2  daily ρ +0.01, lifetime ε +1") for line in debits)
    assert len({line.split()[3] for line in debits}) == 2
    (grant,) = [line for line in lines if line not in debits]
    assert grant.endswith("1  lifetime ε +20; alice: ticket 7")
    assert dpmesh("ledger", "log", "--grants", "--ledger", URL).out.splitlines() == [head, grant]
    rows = [json.loads(line) for line in dpmesh("ledger", "log", "--json", "--ledger", URL).out.splitlines()]
    assert [row["kind"] for row in rows].count("debit") == 4
    assert all(len(row["chain"]) == 32 and row["at"].endswith("Z") for row in rows)
    assert {json.dumps(row["amounts"]) for row in rows if row["kind"] == "debit"} == {
        '{"daily": 0.01, "lifetime": 1.0}'
    }
    assert "unit-" not in ran.out


def test_log_shows_looser_policies(dpmesh, workplace: Path) -> None:
    note = "policy epoch 5 replaces epoch 4, looser: ticket 8: recall"

    async def record() -> None:
        ledger = Ledger(open_store(URL), BUDGETS)
        await ledger.open()
        await ledger.record(note)
        await ledger.charge([(0, b"unit-1", 1)])
        await ledger.close()

    asyncio.run(record())
    for options in ([], ["--grants"]):
        out = dpmesh("ledger", "log", *options, "--ledger", URL).out
        lines = [line for line in out.splitlines() if " policy " in line]
        assert [line.split(maxsplit=6)[6] for line in lines] == [note]
    row = json.loads(dpmesh("ledger", "log", "--grants", "--json", "--ledger", URL).out)
    assert (row["kind"], row["accounts"], row["amounts"], row["by"]) == ("policy", 0, {}, "")
    assert row["reason"] == note
    assert dpmesh("ledger", "verify", "--ledger", URL).code == 0


def test_log_of_nothing(dpmesh) -> None:
    dpmesh("ledger", "migrate", "--ledger", URL)
    assert dpmesh("ledger", "log", "--json", "--ledger", URL) == (0, "", "")


def test_log_goes_on_behind_an_entry_that_can_not_be_read(dpmesh, ledger: None) -> None:
    tamper("UPDATE charges SET body = x'ff' WHERE rowid = (SELECT min(rowid) FROM charges)")
    ran = dpmesh("ledger", "log", "--json", "--ledger", URL)
    assert ran.code == 1
    assert len(ran.out.splitlines()) == 3
    assert ran.err == "dpmesh: 1 entry can't be read: see dpmesh ledger verify\n"


def test_log_lets_nobody_steer_the_terminal(dpmesh, ledger: None) -> None:
    from dpmesh.ledger.charge_log import EntryKind, encode

    body = encode(EntryKind.ACCEPT, 1, (), "eve: \x1b[2Jhello")
    tamper("UPDATE charges SET body = ? WHERE seq = 1", body)
    out = dpmesh("ledger", "log", "--grants", "--ledger", URL).out
    assert "eve: \N{REPLACEMENT CHARACTER}[2Jhello" in out
    assert "\x1b" not in out


# import


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (URL, "sqlite:///new.db", "the target must be a PostgreSQL ledger"),
        ("memory:", "sqlite:///new.db", "memory:"),
        ("mysql://u:secret@h/d", "sqlite:///new.db", "is not a ledger"),
        ("postgresql://u:secret@127.0.0.1:1/d?sslmode=disable", URL, "the source must be an SQLite ledger"),
        ("", URL, "is not a ledger"),
    ],
)
def test_import_of_what_can_not_be(dpmesh, ledger: None, source: str, target: str, words: str) -> None:
    ran = dpmesh("ledger", "import", source, "--ledger", target)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err
    assert "secret" not in ran.err
    assert not Path("new.db").exists()
    asyncio.run(charge(b"unit-1"))  # it still takes charges


def test_import_without_its_package(dpmesh, ledger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("dpmesh.ledger.postgres.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "dpmesh.ledger.import_sqlite", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    for target in ("postgresql://u@127.0.0.1:1/d?sslmode=disable", "sqlite:///new.db"):
        ran = dpmesh("ledger", "import", URL, "--ledger", target)
        assert (ran.code, ran.out) == (2, "")
        assert "pip install '.[postgres]'" in ran.err


def test_a_ledger_flag_that_is_empty_names_no_ledger(dpmesh, ledger: None) -> None:
    for command in (["migrate"], ["verify"], ["prune", "--keep", "400d"]):
        ran = dpmesh("ledger", *command, "--ledger", "")
        assert (ran.code, ran.out) == (2, "")
        assert "--ledger is empty" in ran.err


def test_who_is_granted_to_is_not_in_the_log(dpmesh, ledger: None) -> None:
    for options in (
        ["unit-1", "--reason", "for UNIT-1"],
        ["unit-1", "--reason", "why", "--by", "unit-1"],
        ["unit-1", "--consumer", "spiffe://a.example/b", "--reason", "for spiffe://a.example/b"],
    ):
        ran = dpmesh("budget", "grant", *options, "--budget", "daily", "--to", "9", "--ledger", URL)
        assert ran.code == 2
        assert "nobody's id" in ran.err
        assert "unit-1" not in ran.err.lower()


def test_identities_that_rotate_share_an_account() -> None:
    rotating = AccountSelector(b"unit-1", "spiffe://a.example/" + "0f" * 16)
    assert rotating.account(bytes(32)) == AccountSelector(b"unit-1", "spiffe://a.example").account(bytes(32))


# accept, after a clock that was wrong


@pytest.fixture
async def locked(workplace: Path) -> None:
    """A ledger that a clock locked which was fifty years ahead."""
    ledger = Ledger(
        open_store(URL), [Budget("daily", window=86_400.0)], clock=lambda: time.time() + 50 * 365 * 86_400
    )
    await ledger.open()
    await ledger.charge([(0, b"unit-1", AMOUNT // 10)])
    await ledger.close()


def test_a_ledger_that_a_wrong_clock_locked_is_accepted(dpmesh, locked: None) -> None:
    listed = dpmesh("budget", "list", "--ledger", URL)
    assert "windows that its clock has not reached, of 'daily'" in listed.err
    assert (
        f"The clock shows {time.strftime('%Y-%m-', time.gmtime())}" in listed.err
        or time.gmtime().tm_mday == 1
    )
    assert "if that is wrong, correct it, and accept nothing" in listed.err
    arguments = ["accept", "--reason", "the battery died", "--by", "bob", "--ledger", URL]
    ran = dpmesh("ledger", *arguments)
    assert ran.code == 2
    assert "A wrong clock began windows" in ran.out
    assert "older copy" not in ran.out
    assert ran.out.endswith("Ahead of the clock here: daily\n")
    assert "nothing was done" in ran.err
    ran = dpmesh("ledger", *arguments, "--yes")
    assert (ran.code, len(ran.out.splitlines())) == (0, 1)
    assert "the clock has not reached: daily." in ran.out
    assert "Restart every holder" in ran.out
    listed = dpmesh("budget", "list", "--ledger", URL, "--json")
    assert listed.err == ""
    (daily,) = json.loads(listed.out)
    assert daily["window_start"] < time.time() + 86_400
    assert (daily["accounts"], daily["most"]["value"]) == (1, 0.1)
    assert dpmesh("ledger", "verify", "--ledger", URL).code == 0
    (entry,) = dpmesh("ledger", "log", "--grants", "--json", "--ledger", URL).out.splitlines()
    found = json.loads(entry)
    assert (found["kind"], found["by"], found["reason"]) == ("accept", "bob", "the battery died")
    assert dpmesh("ledger", *arguments, "--yes").code == 2  # once is enough


def test_accept_json_names_what_a_wrong_clock_locked(dpmesh, locked: None) -> None:
    ran = dpmesh("ledger", "accept", "--reason", "r", "--by", "b", "--yes", "--json", "--ledger", URL)
    assert json.loads(ran.out) == {"accepted": True, "lifetime": [], "ahead": ["daily"]}
