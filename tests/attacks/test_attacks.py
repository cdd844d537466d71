"""No attack gains more than the policy allows, and each succeeds without protection.

False alarms: each limit of an advantage is wrong at most 1e-6 of the time, two of them for each row of the table.
"""

from pathlib import Path

import pytest

from tests.attacks.suite import ATTACKS

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
