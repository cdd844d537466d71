"""Counting: one device counts once an epoch, by its last report; what comes too much is not kept."""

import random
from collections import Counter

import pytest

from dpmesh.rollout.push.counts import (
    MOST_REASONS,
    OTHER_REASON,
    Answer,
    Before,
    Kind,
    Said,
    changes,
    epoch_counts,
    rate,
)
from dpmesh.rollout.push.halting import Round
from dpmesh.rollout.push.reports import OutcomeReport

DIGEST = bytes(32)


def report(device, *, epoch=5, digest=DIGEST, taken=True, reason=""):
    return OutcomeReport(epoch, digest, bytes([device]) * 16, taken, reason)


def nothing(**more):
    return Before(**({"digests": {5: DIGEST}, "devices": {}, "said": {}} | more))


def test_the_last_report_of_a_device_counts():
    found = changes(nothing(), [report(1, taken=False, reason="bad"), report(1), report(1), report(2)])
    assert +found.devices == Counter({(5, Kind.ACK, ""): 2})
    assert found.answers == [Answer.COUNTED] * 4
    before = nothing(devices={(5, Kind.NACK, "bad"): 1}, said={(5, bytes([1]) * 16): Said(Kind.NACK, "bad")})
    found = changes(before, [report(1)])
    assert dict(found.devices) == {(5, Kind.NACK, "bad"): -1, (5, Kind.ACK, ""): 1}


def test_an_epoch_that_nobody_published_is_not_counted():
    found = changes(nothing(), [report(1, epoch=6)])
    assert (found.answers, found.said, found.devices) == ([Answer.UNKNOWN_EPOCH], {}, Counter())


def test_another_document_of_the_epoch_is_told_apart():
    found = changes(nothing(), [report(1, digest=b"\1" * 32)])
    assert dict(found.devices) == {(5, Kind.OTHER, ""): 1}


def test_devices_and_reasons_are_bounded():
    found = changes(nothing(), [report(n) for n in range(5)] + [report(0, taken=False)], most=3)
    assert [*map(found.answers.count, (Answer.COUNTED, Answer.TOO_MANY))] == [4, 2]
    assert +found.devices == Counter({(5, Kind.ACK, ""): 2, (5, Kind.NACK, ""): 1})
    found = changes(nothing(), [report(n, taken=False, reason=str(n)) for n in range(MOST_REASONS + 5)])
    assert found.devices[5, Kind.NACK, OTHER_REASON] == 5
    assert len(found.devices) == MOST_REASONS + 1


def test_counts_are_those_of_the_last_reports_however_they_are_batched():
    rng = random.Random(1)
    before, last, devices, said = nothing(), {}, Counter(), {}
    for _ in range(100):
        batch = [
            report(rng.randrange(20), taken=rng.random() < 0.5, reason=rng.choice("ab"))
            for _ in range(rng.randrange(5))
        ]
        found = changes(before, batch)
        devices.update(found.devices)
        said |= found.said
        before = nothing(devices=devices, said=said)
        last |= {each.pseudonym: each for each in batch}
    expected = Counter(
        (5, Kind.ACK, "") if each.taken else (5, Kind.NACK, each.reason) for each in last.values()
    )
    assert {cell: n for cell, n in devices.items() if n} == expected


def test_the_document_of_an_epoch():
    devices = {(5, Kind.ACK, ""): 3, (5, Kind.NACK, "x"): 1, (5, Kind.NACK, "y"): 2, (5, Kind.OTHER, ""): 4}
    found = epoch_counts(5, DIGEST, 0.05, "", {**devices, (4, Kind.ACK, ""): 9}, [Round(4, 1, 0, 0)])
    document = found.document()
    assert (document["ack"], document["nack"], document["other_document"]) == (3, 3, 4)
    assert list(document["reasons"].items()) == [("y", 2), ("x", 1)]
    (refusals,) = document["refusals"]
    assert (refusals["ring_rate"], refusals["control_rate"]) == (0.0, None)


@pytest.mark.parametrize("true", [0.0, 0.1, 1.0])
def test_rates_are_unbiased(true):
    """The expectation of the estimate, from the law of the answers: 3/4 of those that refused, 1/4 of the others."""
    answered = 0.75 * true + 0.25 * (1 - true)
    assert rate(answered * 1000, 1000) == pytest.approx(true)
