"""Re-identification: who is it that reported from home and from work? The attacker knows both of everybody.

The people are made up: homes around Zurich, work within some kilometres. Each sends one report from home and one from
work, under one pseudonym. The attacker knows the public law, and takes the person under whom both reports are likeliest.
"""

from __future__ import annotations

import numpy as np

import dpmesh
from dpmesh.policy import Policy
from dpmesh.policy.kinds.cells import neighbourhoods
from dpmesh.policy.kinds.region import cells_at
from tests.attacks.outcomes import Finding, Guessed, among, among_by_loss
from tests.attacks.worlds import ENFORCE, OBSERVE, UNIT, config, received
from tests.support.places import SWITZERLAND, distance
from tests.support.protos import compiled

PEOPLE = 200
PLACE = "(dpmesh.v1.field).location"
DISK, RADIUS_KM = 2.0, 5.0
"""The loss of a report over the region; the distance within which a report of the other type loses 1."""
TYPES = compiled(
    f"""message Place {{ double latitude = 1; double longitude = 2; }}
    message Disk {{ string id = 1 [{UNIT} = {{}}]; Place at = 2 [{PLACE} = {{epsilon: {DISK} {SWITZERLAND}}}]; }}
    message Geo {{ string id = 1 [{UNIT} = {{}}];
      Place at = 2 [{PLACE} = {{epsilon: 1 radius_km: {RADIUS_KM} metric: GEO {SWITZERLAND}}}]; }}"""
)


def people(seed: int = 1) -> np.ndarray:
    """Homes and places of work: shape (2, PEOPLE, 2), degrees of latitude and longitude."""
    rng = np.random.default_rng(seed)
    home = np.array([47.37, 8.54]) + rng.normal(0, [0.08, 0.12], (PEOPLE, 2))
    work = home + rng.laplace(0, [0.03, 0.045], (PEOPLE, 2))
    return np.clip(np.stack([home, work]), [45.8, 5.9], [47.9, 10.5])


async def reports(kind, places: np.ndarray, rounds: int, mode: str) -> np.ndarray:
    """What a receiver sees: shape (rounds, 2, PEOPLE, 2)."""
    seen = []
    async with dpmesh.open(config(mode=mode)) as mesh:
        for _ in range(rounds):
            for spots in places.tolist():
                for person, (latitude, longitude) in enumerate(spots):
                    message = kind(id=f"p{person}", at={"latitude": latitude, "longitude": longitude})
                    at = (await received(mesh, message))[0].at
                    seen.append((at.latitude, at.longitude))
    return np.array(seen).reshape(rounds, 2, PEOPLE, 2)


def payload_of(kind):
    """The public law of a type's place."""
    return next(field.payload for field in Policy().plan(kind.DESCRIPTOR).fields if field.path == "at")


def disk_scores(seen: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The log likelihood of each candidate (rows) for each of the reports (columns)."""
    law = payload_of(TYPES.Disk).law
    order = neighbourhoods(law.cells, law.mechanism.epsilon).order
    near = np.zeros((len(law.cells), len(law.cells)), dtype=bool)
    np.put_along_axis(near, order[:, : law.mechanism.near].astype(np.int64), True, axis=1)
    true, found = law.cells.numbers_at(*places.T), law.cells.numbers_at(*seen.T)
    return near[np.ix_(true, found)] * float(law.mechanism.epsilon)


def geo_scores(seen: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The log likelihood of each candidate (rows) for each of the reports (columns), but for a constant."""
    payload = payload_of(TYPES.Geo)
    spacing, region = payload.law.spacing, payload.region
    (q, r), (y, x) = (cells_at(*region.project(*of.T), spacing) for of in (places, seen))
    dq, dr = y[None] - q[:, None], x[None] - r[:, None]
    return -float(payload.law.mechanism.loss) * np.maximum(np.maximum(abs(dq), abs(dr)), abs(dq + dr))


def nearness(seen: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Nearness, for reports without noise."""
    return -distance(tuple(places.T[:, :, None]), tuple(seen.T[:, None, :]))


def found(seen: np.ndarray, places: np.ndarray, scores) -> Guessed:
    """How often the likeliest candidate is the right one."""
    hits = 0
    for home, work in seen:
        score = scores(home, places[0]) + scores(work, places[1])
        hits += int((score.argmax(axis=0) == np.arange(PEOPLE)).sum())
    return Guessed(hits, len(seen) * PEOPLE, PEOPLE)


def geo_allowed(places: np.ndarray) -> float:
    """What both reports allow: epsilon times distance over radius, with 4/3 cells more for each report."""
    slack = 4 / 3 * payload_of(TYPES.Geo).law.spacing
    apart = sum(distance(tuple(spots.T[:, :, None]), tuple(spots.T[:, None, :])) + slack for spots in places)
    losses = apart / RADIUS_KM
    np.fill_diagonal(losses, 0)
    return among_by_loss(losses)


async def findings(count: int) -> list[Finding]:
    """`count` times 200 people, at least once, by either mechanism."""
    rounds, places = max(1, count // PEOPLE), people()
    raw = found(await reports(TYPES.Geo, places, 1, OBSERVE), places, nearness)
    disk = found(await reports(TYPES.Disk, places, rounds, ENFORCE), places, disk_scores)
    geo = found(await reports(TYPES.Geo, places, rounds, ENFORCE), places, geo_scores)
    what = "places: who of 200 reported from home and from work"
    return [
        Finding(f"{what}, epsilon", among(PEOPLE, 2 * DISK), "two reports of epsilon 2", disk, raw),
        Finding(
            f"{what}, epsilon in a radius",
            geo_allowed(places),
            "epsilon 1 for each 5 km, in two reports: people who live far from all others are found",
            geo,
            raw,
        ),
    ]
