"""`dpmesh budget`: what it reads from a real ledger file."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting, rho_to_epsilon
from dpmesh.ledger import Budget, Ledger, open_store
from dpmesh.ledger.budget import consumer_key

URL = "sqlite:///ledger.db"
# So long that no window ends while the tests run.
CENTURY = 36_500 * 86_400.0
BUDGETS = [
    Budget("century", "unit", 8.0, 1e-6, Accounting.ZCDP, CENTURY),
    Budget("lifetime", "unit", 100.0, 0.0, Accounting.PURE, None),
    Budget("analysts", "global", 2.0, 0.0, Accounting.PURE, CENTURY),
]
QUOTAS = [
    Budget("partners", "unit/consumer", 4.0, 1e-6, Accounting.ZCDP, CENTURY, under="century"),
    Budget("press", "global/consumer", 1.0, 0.0, Accounting.PURE, CENTURY, under="analysts"),
]


@pytest.fixture
async def ledger(workplace: Path) -> None:
    """20 units that spent 0.01 to 0.20 rho and 1 epsilon each, and one aggregate."""
    ledger = Ledger(open_store(URL), BUDGETS)
    await ledger.open()
    for number in range(1, 21):
        unit = b"unit-%d" % number
        await ledger.charge([(0, unit, number * AMOUNT // 100), (1, unit, AMOUNT)])
    await ledger.charge([(2, b"", AMOUNT // 2)])
    await ledger.close()


@pytest.fixture
async def quotas(workplace: Path) -> None:
    """A unit and an aggregate of which two consumers and an unknown one received something."""
    ledger = Ledger(open_store(URL), [*BUDGETS, *QUOTAS])
    await ledger.open()
    for consumer, amount in (("acme", AMOUNT // 10), ("", AMOUNT // 5)):
        await ledger.charge([(0, b"unit-1", amount), (3, consumer_key(b"unit-1", consumer), amount)])
        await ledger.charge([(2, b"", amount), (4, consumer_key(b"", consumer), amount)])
    await ledger.close()


@pytest.fixture
async def yesterday(workplace: Path) -> None:
    """A unit that spent something two days ago, and nothing since."""
    import time

    ledger = Ledger(
        open_store(URL), [Budget("daily", window=86_400.0)], clock=lambda: time.time() - 2 * 86_400
    )
    await ledger.open()
    await ledger.charge([(0, b"unit-1", AMOUNT // 10)])
    await ledger.close()


def test_list(dpmesh, ledger: None) -> None:
    ran = dpmesh("budget", "list", "--ledger", URL)
    assert (ran.code, ran.err) == (0, "")
    head, century, lifetime, analysts = (" ".join(line.split()) for line in ran.out.splitlines())
    assert head == "budget window cap accounts median 95 % most least left"
    assert century.endswith(
        "UTC ρ 1.052 (ε 8) 20 ρ 0.1 (ε 2.14) ρ 0.19 (ε 3.04) ρ 0.2 (ε 3.13) ρ 0.8524 (ε 7.08)"
    )
    assert lifetime == "lifetime lifetime ε 100 20 ε 1 ε 1 ε 1 ε 99"
    assert analysts.endswith("UTC ε 2 1 ε 0.5 ε 0.5 ε 0.5 ε 1.5")


def test_list_names_no_unit(dpmesh, ledger: None) -> None:
    for flags in ([], ["--json"]):
        out = dpmesh("budget", "list", "--ledger", URL, *flags).out
        assert "unit-" not in out
        assert not any(len(word.strip('",')) >= 32 for word in out.split())  # nor a hash of one


def test_list_json(dpmesh, ledger: None) -> None:
    century, lifetime, _ = json.loads(dpmesh("budget", "list", "--ledger", URL, "--json").out)
    assert (century["budget"], century["accounts"], century["accounting"], century["key"]) == (
        "century",
        20,
        "zcdp",
        "unit",
    )
    assert century["window_end"] - century["window_start"] == CENTURY
    assert century["most"] == {"value": 0.2, "epsilon": pytest.approx(rho_to_epsilon(0.2, 1e-6))}
    assert century["least_remaining"]["value"] == pytest.approx(century["cap"]["value"] - 0.2)
    assert (lifetime["window_start"], lifetime["window_end"]) == (0, None)


def test_show(dpmesh, ledger: None) -> None:
    ran = dpmesh("budget", "show", "unit-7", "--ledger", URL)
    assert (ran.code, ran.err) == (0, "")
    head, century, lifetime, *promise = (" ".join(line.split()) for line in ran.out.splitlines())
    assert head == "budget window spent cap granted remaining lifetime loss"
    assert century.startswith("century 1970-01-01 00:00 to 2069-12-07 00:00 UTC ")
    assert "UTC ρ 0.07 (ε 1.76) ρ 1.052 (ε 8) - ρ 0.9824" in century
    assert century.endswith("ρ 0.07 (ε 1.76)")
    assert lifetime == "lifetime lifetime ε 1 ε 100 - ε 99 ε 1"
    text = " ".join(promise)
    assert text.startswith(
        "What this promises, and to whom: The loss is this unit's, towards everyone who receives its messages"
    )
    assert "century: in any one window at most ρ 1.052 (ε 8); in a span as long across the edge" in text
    assert "of two windows up to ρ 2.105 (ε 12" in text
    assert "T windows cost at most T times ρ 1.052; all windows so far cost at most ρ 0.07 (ε 1.76)" in text
    assert "Epsilons are at δ 1e-06" in text
    assert "lifetime: at most ε 100 in all, for ever; so far at most ε 1." in text
    assert "unit-7" not in ran.out


def test_an_id_that_was_never_charged_is_said_to_be_one(dpmesh, ledger: None) -> None:
    """Another spelling of a unit's id looks like a unit that has spent nothing, and takes its grant."""
    granted = ("--budget", "lifetime", "--to", "200", "--reason", "recall", "--ledger", URL)
    for unit, never in (("unit-7", False), ("Unit-7 ", True)):
        ran = dpmesh("budget", "show", unit, "--ledger", URL), dpmesh("budget", "grant", unit, *granted)
        assert [("Nothing was ever charged" in each.out, each.code) for each in ran] == [(never, 0)] * 2


def test_show_of_all_aggregates(dpmesh, ledger: None) -> None:
    ran = dpmesh("budget", "show", "--global", "--ledger", URL)
    assert (ran.code, ran.err) == (0, "")
    assert "ε 0.5" in ran.out.splitlines()[1]
    assert "any one unit whose data are in the aggregates" in ran.out
    (entry,) = json.loads(dpmesh("budget", "show", "--global", "--ledger", URL, "--json").out)
    assert (entry["budget"], entry["key"], entry["spent"]["value"]) == ("analysts", "global", 0.5)
    assert entry["promise"] == {
        "loss_of": "any unit",
        "towards": "everyone together",
        "this_window": {"value": 2.0, "epsilon": 2.0},
        "any_window": {"value": 2.0, "epsilon": 2.0},
        "across_an_edge": {"value": 4.0, "epsilon": 4.0},
        "so_far": {"value": 0.5, "epsilon": 0.5},
    }


@pytest.mark.parametrize(
    ("whose", "consumer", "name", "spent"),
    [
        (["unit-1"], "acme", "partners", 0.1),
        (["unit-1"], "", "partners", 0.2),
        (["unit-1"], "nobody", "partners", 0.0),
        (["--global"], "acme", "press", 0.1),
        (["--global"], "", "press", 0.2),
    ],
)
def test_show_quotas(dpmesh, quotas: None, whose: list[str], consumer: str, name: str, spent: float) -> None:
    ran = dpmesh("budget", "show", *whose, "--consumer", consumer, "--ledger", URL, "--json")
    (entry,) = json.loads(ran.out)
    assert (entry["budget"], entry["spent"]["value"]) == (name, spent)
    assert entry["promise"]["towards"] == "this consumer"
    text = dpmesh("budget", "show", *whose, "--consumer", consumer, "--ledger", URL).out
    assert "towards this consumer. Consumers who put together what they received" in text


def test_there_are_no_quotas(dpmesh, ledger: None) -> None:
    ran = dpmesh("budget", "show", "unit-1", "--consumer", "acme", "--ledger", URL)
    assert ran == (0, "the ledger holds no budget of key 'unit/consumer'\n", "")
    assert dpmesh("budget", "show", "unit-1", "--consumer", "acme", "--ledger", URL, "--json").out == "[]\n"


def test_quotas_are_not_among_budgets(dpmesh, quotas: None) -> None:
    shown = json.loads(dpmesh("budget", "show", "unit-1", "--ledger", URL, "--json").out)
    assert [entry["budget"] for entry in shown] == ["century", "lifetime"]
    listed = json.loads(dpmesh("budget", "list", "--ledger", URL, "--json").out)
    assert [(entry["budget"], entry["key"]) for entry in listed][-2:] == [
        ("partners", "unit/consumer"),
        ("press", "global/consumer"),
    ]


def test_show_json_and_hex(dpmesh, ledger: None) -> None:
    plain = dpmesh("budget", "show", "unit-7", "--ledger", URL, "--json").out
    coded = dpmesh("budget", "show", b"unit-7".hex(), "--hex", "--ledger", URL, "--json").out
    assert plain == coded
    century = json.loads(plain)[0]
    assert century["spent"]["value"] == 0.07
    assert century["remaining"]["value"] == pytest.approx(century["cap"]["value"] - 0.07)


def test_a_unit_that_never_sent_has_all_left(dpmesh, ledger: None) -> None:
    for entry in json.loads(dpmesh("budget", "show", "nobody", "--ledger", URL, "--json").out):
        assert entry["spent"]["value"] == 0
        assert entry["remaining"] == entry["cap"]


async def _charge(unit: str) -> None:
    ledger = Ledger(open_store(URL), BUDGETS)
    await ledger.open()
    await ledger.charge([(1, unit.encode(), AMOUNT)])
    await ledger.close()


@pytest.mark.parametrize(
    "unit", ["Zürich 7", "-7", "a'; DROP TABLE accounts --", "飞机", "[red]", "\n", "\0"]
)
def test_units_may_be_called_anything(dpmesh, unit: str) -> None:
    asyncio.run(_charge(unit))
    ran = dpmesh("budget", "show", "--ledger", URL, "--json", "--", unit)
    assert json.loads(ran.out)[1]["spent"]["value"] == 1
    assert unit not in ran.out.replace("\n", "")


def test_an_old_window_is_not_the_current_one(dpmesh, yesterday: None) -> None:
    (daily,) = json.loads(dpmesh("budget", "list", "--ledger", URL, "--json").out)
    assert daily["accounts"] == 0
    assert daily["least_remaining"] == daily["cap"]
    (shown,) = json.loads(dpmesh("budget", "show", "unit-1", "--ledger", URL, "--json").out)
    assert shown["spent"]["value"] == 0
    assert shown["lifetime"]["value"] == shown["promise"]["so_far"]["value"] == 0.1
    assert " - " in dpmesh("budget", "list", "--ledger", URL).out


def test_the_ledger_of_the_configuration(
    dpmesh, ledger: None, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write("dpmesh.toml", f'[ledger]\nurl = "{URL}"\n')
    assert dpmesh("budget", "list", "--config", config).code == 0
    assert dpmesh("budget", "list").code == 0  # dpmesh.toml of the working directory
    config.unlink()
    monkeypatch.setenv("DPMESH_LEDGER_URL", URL)
    assert dpmesh("budget", "list").code == 0


def test_reading_changes_nothing(dpmesh, ledger: None) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert dpmesh("budget", "list", "--ledger", URL).code == 0
    assert dpmesh("budget", "show", "unit-1", "--ledger", URL).code == 0
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_a_missing_ledger_is_not_made(dpmesh) -> None:
    ran = dpmesh("budget", "list")
    assert (ran.code, ran.out) == (2, "")
    assert "there is no ledger at" in ran.err
    assert "--ledger" in ran.err
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--ledger", "memory:"], "memory:"),
        (["list", "--ledger", "mysql://x"], "mysql://x"),
        (["list", "--ledger", "sqlite:///garbage.db"], "garbage.db"),
        (["list", "--config", "nowhere.toml"], "nowhere.toml"),
        (["show"], "UNIT"),
        (["show", ""], "UNIT is empty"),
        (["show", "xyz", "--hex", "--ledger", URL], "not hexadecimal"),
        (["show", "unit-1", "--global"], "UNIT, or --global"),
        (["show", "--global", "--hex"], "--hex goes with UNIT"),
        (["show", "\udcff", "--ledger", URL], "not in UTF-8"),
        (["show", "unit-1", "--consumer", "\udcff", "--ledger", URL], "not in UTF-8"),
        (["shwo"], "No such command"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(dpmesh, write, arguments: list[str], words: str) -> None:
    write("garbage.db", "this is no database, however long one reads it" * 100)
    ran = dpmesh("budget", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("dpmesh: ")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err


CONFIGURED = """
[ledger]
url = "sqlite:///ledger.db"
[[budget]]
name = "life-time"
epsilon = 100.0
accounting = "pure"
[[budget]]
name = "analysts"
epsilon = 2.0
accounting = "pure"
"""


def test_what_is_no_longer_configured_is_named(dpmesh, ledger: None, write) -> None:
    write("dpmesh.toml", CONFIGURED)
    ran = dpmesh("budget", "list")
    assert (ran.code, ran.err) == (0, "")
    head, century, lifetime, analysts, *notes = (" ".join(line.split()) for line in ran.out.splitlines())
    assert head.startswith("budget state window")
    assert century.startswith("century not configured 1970")
    assert lifetime.startswith("lifetime not configured lifetime")
    assert analysts.startswith("analysts configured 1970")
    assert [note.partition(".")[0] for note in notes] == [
        "century: not configured",
        "lifetime: not configured (similar: life-time)",
    ]
    states = [entry["state"] for entry in json.loads(dpmesh("budget", "list", "--json").out)]
    assert states == ["not configured", "not configured", "configured"]
    assert "lifetime: not configured (similar: life-time)" in dpmesh("budget", "show", "unit-1").out
    granted = dpmesh(
        "budget", "grant", "unit-1", "--budget", "lifetime", "--to", "101", "--reason", "a test", "--by", "me"
    )
    assert "lifetime: not configured" in granted.err


def test_a_ledger_without_its_configuration_has_no_states(dpmesh, ledger: None, write) -> None:
    """A configuration that happens to be in the working directory is not taken for that of a ledger that was named."""
    write("dpmesh.toml", CONFIGURED)
    assert "not configured" not in dpmesh("budget", "list", "--ledger", URL).out
    states = json.loads(dpmesh("budget", "list", "--ledger", URL, "--json").out)
    assert {entry["state"] for entry in states} == {None}
    named = dpmesh("budget", "list", "--ledger", URL, "--config", "dpmesh.toml")
    assert "not configured" in named.out
