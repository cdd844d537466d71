"""Linkage: whose pseudonym is whose, across epochs and consumers, and for those who know all ids."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Callable

import dpmesh
from tests.attacks.outcomes import Finding, Guessed
from tests.attacks.worlds import ENFORCE, OBSERVE, UNIT, config, received
from tests.support.protos import compiled

UNITS = 100
DAY = 86_400
TYPES = compiled(
    f"""message Ping {{ string id = 1 [{UNIT} = {{}}]; bool up = 2 [(dpmesh.v1.field).categorical = {{epsilon: 0.5}}]; }}"""
)
IDS = [f"device-{number}" for number in range(UNITS)]
PLAIN = tuple(hashlib.new(name).name for name in ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s"))


async def by_consumers(days: int, mode: str) -> list[list[list[str]]]:
    """The ids that two consumers see of all units on each of some days."""
    now = [0.0]
    async with dpmesh.open(config(mode=mode), clock=lambda: now[0]) as mesh:
        shown = []
        for day in range(days):
            now[0] = day * DAY + 1.0
            messages = [TYPES.Ping(id=id_) for id_ in IDS]
            shown.append(
                [
                    [(await received(mesh, message, consumer=name))[0].id for message in messages]
                    for name in ("a", "b")
                ]
            )
    return shown


async def seen(days: int, mode: str) -> list[list[str]]:
    """The ids that a receiver sees of all units, on each of some days."""
    now = [0.0]
    async with dpmesh.open(config(mode=mode), clock=lambda: now[0]) as mesh:
        shown = []
        for day in range(days):
            now[0] = day * DAY + 1.0
            shown.append([(await received(mesh, TYPES.Ping(id=id_)))[0].id for id_ in IDS])
    return shown


def across(shown: list[list[str]]) -> Guessed:
    """Follows each unit from each day to the next: to the pseudonym that agrees in most letters."""
    hits = 0
    for before, after in itertools.pairwise(shown):
        for number, name in enumerate(before):
            agree = [sum(map(str.__eq__, name, other)) for other in after]
            hits += agree.index(max(agree)) == number
    return Guessed(hits, UNITS * (len(shown) - 1), UNITS)


def between_consumers(shown: list[list[list[str]]]) -> Guessed:
    """Joins what two consumers saw on the same days."""
    pairs = [across(pair) for pair in shown]
    return Guessed(sum(pair.hits for pair in pairs), sum(pair.trials for pair in pairs), UNITS)


def hashes(id_: str, day: int) -> list[str]:
    """What pseudonyms could be if they had no secret."""
    data = id_.encode()
    salts = (b"", str(day).encode(), day.to_bytes(8, "big"), b"dpmesh pseudonym")
    names = [id_]
    for name in PLAIN:
        names += [hashlib.new(name, salt + data).hexdigest() for salt in salts]
        names += [hmac.new(salt, data, name).hexdigest() for salt in salts]
    names += [hashlib.blake2b(data, digest_size=16, key=salt).hexdigest() for salt in salts]
    return names


def by_dictionary(shown: list[list[str]]) -> Guessed:
    """Looks each pseudonym up among the hashes of all ids, and guesses the first id if none fits."""
    hits = 0
    for day, names in enumerate(shown):
        known = {
            text[:length]: id_ for id_ in IDS for text in hashes(id_, day) for length in (16, 32, len(text))
        }
        hits += sum(known.get(name, IDS[0]) == id_ for name, id_ in zip(names, IDS, strict=True))
    return Guessed(hits, UNITS * len(shown), UNITS)


ROWS: tuple[tuple[str, Callable], ...] = (
    ("linkage: 100 units' pseudonyms from one day to the next", across),
    ("linkage: 100 units' pseudonyms, all ids known", by_dictionary),
)


async def findings(count: int) -> list[Finding]:
    """`count` pseudonyms, at least those of three days."""
    days = max(3, count // UNITS)
    shown, raw = await seen(days, ENFORCE), await seen(3, OBSERVE)
    claim = "one of 100, by chance: the key changes every day and is secret"
    rows = [Finding(name, 0.0, claim, attack(shown), attack(raw)) for name, attack in ROWS]
    pairs, raw_pairs = await by_consumers(days // 2 + 1, ENFORCE), await by_consumers(2, OBSERVE)
    return [
        *rows,
        Finding(
            "linkage: 100 units' pseudonyms of a day, by two consumers that compare them",
            0.0,
            "one of 100, by chance: each consumer has a key of its own",
            between_consumers(pairs),
            between_consumers(raw_pairs),
        ),
    ]
