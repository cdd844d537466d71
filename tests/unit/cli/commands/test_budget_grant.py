"""`dpmesh budget grant`: audited raises of a cap, in a real ledger file."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting, cap, rho_to_epsilon
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Budget, Ledger, open_store
from dpmesh.ledger.budget import consumer_key

URL = "sqlite:///ledger.db"
CENTURY = 36_500 * 86_400.0
BUDGETS = [
    Budget("century", "unit", 8.0, 1e-6, Accounting.ZCDP, CENTURY),
    Budget("lifetime", "unit", 10.0, 0.0, Accounting.PURE, None),
    Budget("analysts", "global", 2.0, 0.0, Accounting.PURE, CENTURY),
    Budget("partners", "unit/consumer", 1.0, 0.0, Accounting.PURE, None, under="lifetime"),
    Budget("press", "global/consumer", 1.0, 0.0, Accounting.PURE, CENTURY, under="analysts"),
]
UNIT = "sensor-7"


async def charge(index: int, key: bytes, amount: int) -> None:
    ledger = Ledger(open_store(URL), BUDGETS)
    await ledger.open()
    try:
        await ledger.charge([(index, key, amount)])
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(workplace: Path) -> None:
    """A unit that spent its lifetime budget but for one, and something of the others."""
    await charge(0, UNIT.encode(), AMOUNT // 10)
    await charge(1, UNIT.encode(), 9 * AMOUNT)
    await charge(2, b"", AMOUNT)


@pytest.fixture
def grant(dpmesh, ledger: None):
    """Grants, with a reason and a name unless others are given."""

    def call(*arguments: object, reason: str = "ticket 12", by: str | None = "alice"):
        named = [] if by is None else ["--by", by]
        return dpmesh("budget", "grant", *arguments, "--reason", reason, *named, "--ledger", URL)

    return call


def test_in_a_window(grant, dpmesh) -> None:
    ran = grant(UNIT, "--budget", "century", "--to", "10")
    assert (ran.code, ran.err) == (0, "")
    text = " ".join(ran.out.split())
    assert "1970-01-01 00:00 to 2069-12-07 00:00 UTC" in text
    assert "in all, so " in text
    assert "The promise is weaker in this window: at most " in text
    assert "instead of ρ 1.052 (ε 8)" in text
    assert "The next window has the budget's cap again." in text
    assert UNIT not in ran.out
    shown = json.loads(dpmesh("budget", "show", UNIT, "--ledger", URL, "--json").out)[0]
    wanted = cap(Accounting.ZCDP, 10.0, 1e-6)
    assert shown["granted"]["value"] == (wanted - BUDGETS[0].cap) / AMOUNT
    assert shown["promise"]["this_window"]["epsilon"] == pytest.approx(10, abs=1e-6)
    assert shown["promise"]["across_an_edge"]["epsilon"] == pytest.approx(
        rho_to_epsilon((wanted + BUDGETS[0].cap) / AMOUNT, 1e-6)
    )
    assert shown["remaining"]["value"] == pytest.approx(wanted / AMOUNT - 0.1)
    assert "(to ε 10)" in dpmesh("budget", "show", UNIT, "--ledger", URL).out
    (listed, *_) = json.loads(dpmesh("budget", "list", "--ledger", URL, "--json").out)
    assert (listed["accounts"], listed["granted"]) == (1, 1)
    assert "more than the cap was granted to 1 of these" in dpmesh("budget", "list", "--ledger", URL).out


def test_it_can_be_spent(grant) -> None:
    import asyncio

    with pytest.raises(BudgetExhaustedError):
        asyncio.run(charge(1, UNIT.encode(), 2 * AMOUNT))
    assert grant(UNIT, "--budget", "lifetime", "--to", "11").code == 0
    asyncio.run(charge(1, UNIT.encode(), 2 * AMOUNT))
    with pytest.raises(BudgetExhaustedError):
        asyncio.run(charge(1, UNIT.encode(), 1))


def test_for_ever(grant) -> None:
    ran = grant(UNIT, "--budget", "lifetime", "--to", "12.5")
    assert ran.code == 0
    text = " ".join(ran.out.split())
    assert "granted ε 2.5 more" in text
    assert "may be lost ε 12.5 in all, so ε 3.5 from now on" in text
    assert "weaker for ever: at most ε 12.5 instead of ε 10, and nothing can take that back" in text


def test_again_counts_what_was_granted(grant) -> None:
    assert grant(UNIT, "--budget", "lifetime", "--to", "12", "--json").code == 0
    entry = json.loads(grant(UNIT, "--budget", "lifetime", "--to", "15", "--json").out)
    assert (entry["raised"]["value"], entry["granted"]["value"]) == (3, 5)
    ran = grant(UNIT, "--budget", "lifetime", "--to", "15")
    assert (ran.code, ran.out) == (2, "")
    assert "--to: 15 is not more than the ε 15 that may be lost already" in ran.err


def test_to_a_unit_that_never_sent(grant, dpmesh) -> None:
    assert grant("new-one", "--budget", "lifetime", "--to", "12").code == 0
    shown = json.loads(dpmesh("budget", "show", "new-one", "--ledger", URL, "--json").out)[1]
    assert (shown["spent"]["value"], shown["granted"]["value"], shown["remaining"]["value"]) == (0, 2, 12)


def test_to_one_account_only(grant, dpmesh) -> None:
    assert grant(UNIT.encode().hex(), "--hex", "--budget", "lifetime", "--to", "12").code == 0
    other = json.loads(dpmesh("budget", "show", "sensor-8", "--ledger", URL, "--json").out)[1]
    assert (other["granted"]["value"], other["remaining"]["value"]) == (0, 10)


@pytest.mark.parametrize(
    ("whose", "name", "key"),
    [
        (["--global"], "analysts", b""),
        ([UNIT, "--consumer", "acme"], "partners", consumer_key(UNIT.encode(), "acme")),
        (["--global", "--consumer", ""], "press", consumer_key(b"", "")),
    ],
)
def test_of_aggregates_and_quotas(grant, whose: list[str], name: str, key: bytes) -> None:
    import asyncio

    assert grant(*whose, "--budget", name, "--to", "5").code == 0
    index = next(index for index, budget in enumerate(BUDGETS) if budget.name == name)
    asyncio.run(charge(index, key, 4 * AMOUNT))


def test_the_log_has_who_and_why(grant, dpmesh) -> None:
    grant(UNIT, "--budget", "lifetime", "--to", "12", reason="  Prüfung: einmal  ", by=None)
    ran = dpmesh("ledger", "log", "--grants", "--json", "--ledger", URL)
    (entry,) = [json.loads(line) for line in ran.out.splitlines()]
    assert (entry["kind"], entry["accounts"], entry["amounts"]) == ("grant", 1, {"lifetime": 2.0})
    assert (entry["by"], entry["reason"]) == (pwd.getpwuid(os.getuid()).pw_name, "Prüfung: einmal")
    assert UNIT not in ran.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([UNIT, "--budget", "lifetime", "--to", "nan"], "--to: epsilon must be finite"),
        ([UNIT, "--budget", "lifetime", "--to", "inf"], "--to: epsilon must be finite"),
        ([UNIT, "--budget", "lifetime", "--to", "-1"], "--to: epsilon must not be negative"),
        ([UNIT, "--budget", "lifetime", "--to", "0"], "--to: epsilon must be greater than 0"),
        ([UNIT, "--budget", "century", "--to", "nan"], "--to: epsilon must be finite"),
        ([UNIT, "--budget", "century", "--to", "1e300"], "--to: "),
        ([UNIT, "--budget", "lifetime", "--to", "1e10"], "--to: "),
        ([UNIT, "--budget", "lifetime", "--to", "ten"], "Invalid value for '--to'"),
        ([UNIT, "--budget", "lifetime", "--to", "10"], "is not more than the ε 10"),
        ([UNIT, "--budget", "liftime", "--to", "12"], "there are century, lifetime, analysts"),
        ([UNIT, "--budget", "analysts", "--to", "12"], "give --global and no --consumer"),
        (["--global", "--budget", "lifetime", "--to", "12"], "give UNIT and no --consumer"),
        ([UNIT, "--budget", "partners", "--to", "12"], "give UNIT and --consumer"),
        ([UNIT, "--consumer", "acme", "--budget", "lifetime", "--to", "12"], "no --consumer"),
        (["--budget", "lifetime", "--to", "12"], "UNIT, or --global"),
        ([UNIT, "--global", "--budget", "lifetime", "--to", "12"], "UNIT, or --global"),
        (["", "--budget", "lifetime", "--to", "12"], "UNIT is empty"),
        (["xy", "--hex", "--budget", "lifetime", "--to", "12"], "UNIT is not hexadecimal"),
        ([UNIT, "--to", "12"], "--budget"),
        ([UNIT, "--budget", "lifetime"], "--to"),
    ],
)
def test_wrong_input_grants_nothing(grant, dpmesh, arguments: list[str], words: str) -> None:
    ran = grant(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err
    assert UNIT not in ran.err
    assert dpmesh("ledger", "log", "--grants", "--json", "--ledger", URL).out == ""


@pytest.mark.parametrize(
    ("reason", "by", "words"),
    [
        ("", "alice", "--reason must be 1 to 500 printable characters"),
        ("   ", "alice", "--reason must be 1 to 500"),
        ("a\nb", "alice", "--reason must be 1 to 500"),
        ("\x1b[2J", "alice", "--reason must be 1 to 500"),
        ("\udcff", "alice", "--reason must be 1 to 500"),
        ("x" * 501, "alice", "--reason must be 1 to 500"),
        ("audit", "", "--by must be 1 to 100"),
        ("audit", "a: b", "--by must not hold"),
        ("audit", "a:", "--by must not hold"),
        (f"{UNIT} asked for it", "alice", "--reason names the unit"),
        (f"asked for by {UNIT.upper()}.", "alice", "--reason names the unit"),
        (f"see {UNIT.encode().hex()}", "alice", "--reason names the unit"),
    ],
)
def test_who_and_why_are_asked_for(grant, dpmesh, reason: str, by: str, words: str) -> None:
    ran = grant(UNIT, "--budget", "lifetime", "--to", "12", reason=reason, by=by)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err
    assert UNIT not in ran.err
    assert dpmesh("ledger", "log", "--grants", "--json", "--ledger", URL).out == ""


def test_the_longest_reason(grant) -> None:
    assert grant(UNIT, "--budget", "lifetime", "--to", "12", reason="x" * 500).code == 0


def test_no_ledger_is_made(dpmesh) -> None:
    ran = dpmesh("budget", "grant", UNIT, "--budget", "b", "--to", "1", "--reason", "r", "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert "there is no ledger at" in ran.err
    assert os.listdir() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_without_rights(ledger: None, workplace: Path) -> None:
    """Read-only files are nothing to root, so the command runs as nobody."""
    arguments = [
        "budget",
        "grant",
        UNIT,
        "--budget",
        "lifetime",
        "--reason",
        "r",
        "--by",
        "b",
        "--ledger",
        URL,
    ]
    # First as root, in vain: it may be that only root can read the modules that are imported.
    code = (
        f"import os, sys; from dpmesh import cli; cli.run([*{arguments}, '--to', '1']); cli.run(['budget', 'show', 'x', "
        f"'--ledger', {URL!r}]); import dpmesh.ledger.sqlite.rollback_guard; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        f"sys.stderr.write('---'); sys.exit(cli.run([*{arguments}, '--to', '12']))"
    )
    for folder in (workplace, *workplace.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o755)
    Path("ledger.db").chmod(0o644)
    before = Path("ledger.db").read_bytes()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = done.stderr.partition("---")[2]
    assert done.returncode == 2, done.stderr
    assert len(message.splitlines()) == 1
    assert "ledger.db" in message
    assert UNIT not in message
    assert Path("ledger.db").read_bytes() == before
