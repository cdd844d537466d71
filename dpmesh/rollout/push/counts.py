"""Counts: how many devices said what of each epoch, and what a batch of reports changes in them. Pure calculations."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dpmesh.rollout.push.halting import Round
from dpmesh.rollout.push.reports import OutcomeReport

KEPT_EPOCHS: Final = 8
"""How many epochs a store keeps: the newest ones."""

MOST_DEVICES: Final = 5_000_000
"""How many devices of one epoch a store keeps. It counts no others: the disk is finite."""

MOST_REASONS: Final = 32
"""How many different reasons of one epoch are told apart. Others share `OTHER_REASON`."""

OTHER_REASON: Final = "(other reasons)"


class Kind(enum.StrEnum):
    """What a device said of an epoch.

    ACK: the policy is in force there. OTHER: a policy of this epoch is, but another document. NACK: it was refused.
    """

    ACK = "ack"
    OTHER = "other"
    NACK = "nack"


class Answer(enum.Enum):
    """What became of a report: it was COUNTED; nobody published its epoch here; or there are too many devices."""

    COUNTED = enum.auto()
    UNKNOWN_EPOCH = enum.auto()
    TOO_MANY = enum.auto()


class Said(NamedTuple):
    """What one device said of one epoch: the kind, and its reason if it is NACK."""

    kind: Kind
    reason: str


Device = tuple[int, bytes]
"""(epoch, pseudonym)."""

Cell = tuple[int, Kind, str]
"""(epoch, kind, reason): what is counted together."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a store holds, as far as a batch of reports is concerned.

    Attributes:
        digests: By epoch: SHA-256 of the document that was published.
        devices: By cell, how many devices there are.
        said: What the devices of the batch said before.
    """

    digests: Mapping[int, bytes]
    devices: Mapping[Cell, int]
    said: Mapping[Device, Said]


@dataclass(slots=True)
class Changes:
    """What a store has to write for a batch of reports.

    Attributes:
        said: What devices say now.
        devices: By cell, by how many devices it grows or shrinks.
        answers: What became of each report, in the order of the batch.
    """

    said: dict[Device, Said] = field(default_factory=dict)
    devices: Counter[Cell] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)


def changes(before: Before, reports: Iterable[OutcomeReport], most: int = MOST_DEVICES) -> Changes:
    """What a batch of reports changes. The last report of a device about an epoch is what counts.

    Args:
        before: What the store holds.
        reports: The batch, in the order in which it came.
        most: How many devices of one epoch are kept.
    """
    result = Changes()
    totals: Counter[int] = Counter()
    for (epoch, _, _), devices in before.devices.items():
        totals[epoch] += devices
    reasons = {
        (epoch, reason) for (epoch, kind, reason), n in before.devices.items() if kind is Kind.NACK and n
    }
    for report in reports:
        device = report.epoch, report.pseudonym
        digest, earlier = before.digests.get(report.epoch), result.said.get(device) or before.said.get(device)
        if digest is None:
            result.answers.append(Answer.UNKNOWN_EPOCH)
        elif earlier is None and totals[report.epoch] >= most:
            result.answers.append(Answer.TOO_MANY)
        else:
            now = _said(report, digest, reasons)
            if earlier is None:
                totals[report.epoch] += 1
            else:
                result.devices[report.epoch, earlier.kind, earlier.reason] -= 1
            result.devices[report.epoch, now.kind, now.reason] += 1
            result.said[device] = now
            result.answers.append(Answer.COUNTED)
    return result


def _said(report: OutcomeReport, digest: bytes, reasons: set[tuple[int, str]]) -> Said:
    if report.taken:
        return Said(Kind.ACK if report.digest == digest else Kind.OTHER, "")
    reason = report.epoch, report.reason
    if reason not in reasons:
        if sum(epoch == report.epoch for epoch, _ in reasons) >= MOST_REASONS:
            return Said(Kind.NACK, OTHER_REASON)
        reasons.add(reason)
    return Said(Kind.NACK, report.reason)


class EpochCounts(NamedTuple):
    """All that is known of one epoch.

    Attributes:
        epoch: Its number.
        digest: SHA-256 of its document.
        share: The part of the fleet that shall take it.
        halted: Why it was halted by itself; "" if it was not.
        acks: Devices on which it is in force.
        others: Devices on which another document of this epoch is in force: nobody published that.
        nacks: Devices that refused it, by reason.
        rounds: The answers about refused messages, in the order of the questions.
    """

    epoch: int
    digest: bytes
    share: float
    halted: str
    acks: int
    others: int
    nacks: Mapping[str, int]
    rounds: Sequence[Round]

    @property
    def refused(self) -> int:
        """How many devices refused it."""
        return sum(self.nacks.values())

    def document(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            "epoch": self.epoch,
            "digest": self.digest.hex(),
            "share": self.share,
            "halted": self.halted,
            "ack": self.acks,
            "other_document": self.others,
            "nack": self.refused,
            "reasons": dict(sorted(self.nacks.items(), key=lambda item: (-item[1], item[0]))),
            "refusals": [
                {**each._asdict(), "ring_rate": rate(each.ring_refused, each.ring)}
                | {"control_rate": rate(each.control_refused, each.control)}
                for each in self.rounds
            ],
        }


def epoch_counts(
    epoch: int, digest: bytes, share: float, halted: str, devices: Mapping[Cell, int], rounds: Sequence[Round]
) -> EpochCounts:
    """All that is known of one epoch, of the cells of all epochs."""
    own = {(kind, reason): n for (number, kind, reason), n in devices.items() if number == epoch and n}
    nacks = {reason: n for (kind, reason), n in own.items() if kind is Kind.NACK}
    acks, others = own.get((Kind.ACK, ""), 0), own.get((Kind.OTHER, ""), 0)
    return EpochCounts(epoch, digest, share, halted, acks, others, nacks, rounds)


def rate(refused: int, answers: int) -> float | None:
    """The unbiased estimate of the part of devices that refused messages, from randomized answers; None without any.

    It can lie outside of 0 and 1 by chance, and is not cut, because means of cut estimates are biased.
    """
    return (refused / answers - 0.25) * 2 if answers else None
