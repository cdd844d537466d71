"""What leaves a device: pseudonyms that do not link, noisy bits, and reasons without places."""

import hashlib
import hmac

import pytest

from dpmesh.rollout.push import reports
from dpmesh.rollout.push.reports import outcome_pseudonym, randomized, refusal_pseudonym, scrubbed

SECRET = bytes(range(32))


def test_a_pseudonym_is_stable_and_belongs_to_one_epoch_and_purpose():
    made = {
        make(secret, number)
        for make in (outcome_pseudonym, refusal_pseudonym)
        for secret in (SECRET, SECRET[::-1])
        for number in (0, 1, 2**63 - 1)
    }
    assert len(made) == 12
    assert {len(each) for each in made} == {16}
    message = b"dpmesh rollout ack" + (5).to_bytes(8, "big")
    assert outcome_pseudonym(SECRET, 5) == hmac.new(SECRET, message, hashlib.sha256).digest()[:16]


def test_the_law_of_an_answer_is_that_of_its_epsilon(monkeypatch):
    """All four outcomes of the draw: the bit three times, its opposite once."""
    law = {}
    for bit in (False, True):
        answers = []
        for draw in range(4):
            monkeypatch.setattr(reports.secrets, "randbelow", lambda n, draw=draw: draw if n == 4 else None)
            answers.append(randomized(bit))
        law[bit] = answers.count(True) / 4
    assert law == {False: 0.25, True: 0.75}


@pytest.mark.parametrize(
    ("reason", "left"),
    [
        ("acme.Report.speed: epsilon 0: must be above 0 [epsilon]", None),
        ("/acme.v1.Fleet/Report: no such method", None),
        ("policy file /home/ann/fleet/policy.yaml: bad", "policy file (path): bad"),
        ("policy file ./x/policy.yaml: bad", "policy file (path): bad"),
        ("https://ann@host/x?y=1 does not answer", "(path) does not answer"),
        ("a\nb\x1b[31m\u202e c", "a b [31m c"),
        ("x" * 300, "x" * 200),
        ("epsilon 1/2 and 3 / 4", None),
    ],
)
def test_reasons_lose_places_and_control_characters(reason, left):
    assert scrubbed(reason) == (reason if left is None else left)
    assert scrubbed(scrubbed(reason)) == scrubbed(reason)
