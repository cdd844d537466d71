"""No attack gains more than the policy allows, and each succeeds without protection.

False alarms: each limit of an advantage is wrong at most 1e-6 of the time, two of them for each row of the table.
"""

from pathlib import Path

import pytest

from tests.attacks.outcomes import FALSE_ALARM, between_two
from tests.attacks.presence import between, everything
from tests.attacks.suite import ATTACKS
from tests.attacks.worlds import CAT, ENFORCE, HIDDEN, ITEMS
from tests.support.protos import compiled

PAGE = Path(__file__).resolve().parents[2] / "docs" / "attacks.md"
QUICK = [name for name, attack in ATTACKS.items() if attack.quick]


@pytest.mark.parametrize("name", QUICK)
async def test_no_attack_gains_more_than_is_allowed(name):
    findings = await ATTACKS[name].findings(ATTACKS[name].quick)
    assert [row.attack for row in findings if f"| {row.attack} |" not in PAGE.read_text()] == [], (
        "not on the page"
    )
    assert [problem for finding in findings for problem in finding.problems()] == []


@pytest.mark.full
@pytest.mark.parametrize("name", ATTACKS)
async def test_no_attack_of_full_size_gains_more_than_is_allowed(name):
    findings = await ATTACKS[name].findings(ATTACKS[name].full)
    assert [problem for finding in findings for problem in finding.problems()] == []


TWICE = compiled(
    f"""message Member {{ string id = 1 {HIDDEN};
      oneof choice {{ option (dpmesh.v1.oneof) = {{epsilon: 2}};
        bool yes = 2 [{CAT} = {{epsilon: 1}}]; bool no = 3 [{CAT} = {{epsilon: 1}}]; }} }}
    message Phone {{ string id = 1 {HIDDEN}; repeated Contact seen = 2 [{ITEMS} = 3]; }}
    message Contact {{ string id = 1 {HIDDEN}; optional bool sick = 2 [{CAT} = {{epsilon: 1}}]; }}"""
)


@pytest.mark.parametrize(
    ("one", "other", "claimed"),
    [
        (TWICE.Member(id="d", yes=False), TWICE.Member(id="d"), 1.0),
        (TWICE.Phone(id="d", seen=[{"id": "a", "sick": True}]), TWICE.Phone(id="d"), 0.5),
    ],
    ids=["oneof", "contact"],
)
async def test_a_product_that_loses_twice_what_it_claims_is_noticed(one, other, claimed):
    """A false alarm of this test: the gain clears the limit by more than 5 of its standard errors, below 1e-6."""
    gained = await between(one, other, everything, 6000, ENFORCE)
    assert gained.interval(FALSE_ALARM)[0] > between_two(claimed)
