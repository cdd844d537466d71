"""Region: a part of the Earth between two latitudes and two longitudes, mapped to a plane and to its hexagonal cells.

The map is Lambert's azimuthal equal-area projection about a centre (Snyder 1987, "Map Projections: A Working Manual",
page 182). Longitudes are turned so that the centre has 0, so a region may cross the antimeridian or hold a pole.

How much it stretches: a place at the angle c from the centre is 2 sin(c/2) radii away on the map, which is its straight
distance through the Earth. From that follows D <= S / cos(c/2), for the distance D of two places on the map, their
straight distance S, and c the larger of their two angles. Proof: S^2 - cos(c/2)^2 D^2 is least where both places lie in
one direction from the centre. With u = 2 sin(c/2), w = cos(c/2), and c1 <= c2, it is there
(w1 - w2) u2 (u2 (w1 + w2) - 2 u1 w2), which is not negative. No way on the ground is shorter than the straight one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.v1 import privacy_pb2 as pb

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Of the ellipsoid WGS 84: the mean radius, the radius of the equator, and the square of its eccentricity.
RADIUS_KM = 6371.0088
_EQUATOR_KM, _ECCENTRICITY_2 = 6378.137, 0.00669437999014
# Places along each edge that stand for the whole edge, and how far between them it may reach further, in radians.
_EDGE, _SLACK = 257, 1e-4
# At the far end of a larger region, the map is stretched nearly four times.
_FARTHEST = math.radians(150) + 2 * _SLACK
_CENTRES = 181
_SIN_60 = math.sqrt(3) / 2


@dataclass(frozen=True, slots=True)
class Region:
    """A region and its map.

    Attributes:
        south: The smallest latitude.
        north: The largest latitude.
        west: The longitude at which it begins.
        east: The longitude at which it ends, going east; below `west` if it crosses the antimeridian.
        half_width: Half of the difference of its longitudes, in degrees: above 0, up to 180.
        longitude: Of the map's centre, halfway between the bounds: -180 to 180.
        latitude: Of the map's centre, from which the farthest place is nearest.
        reach: The angle from the centre within which all places lie, in radians.
    """

    south: float
    north: float
    west: float
    east: float
    half_width: float
    longitude: float
    latitude: float
    reach: float

    @property
    def middle(self) -> tuple[float, float]:
        """The place that a missing one counts as: latitude, longitude."""
        return (self.south + self.north) / 2, self.longitude

    @property
    def stretch(self) -> float:
        """How much longer a distance may be on the map than on the Earth: a bound.

        A way on the ellipsoid is no shorter than on a sphere of the least radius with which the ellipsoid is curved
        along the way. That is the radius of the meridian where the way is nearest to the equator. The shortest way
        between two places is nowhere nearer to it than both of them, unless it crosses it.
        """
        nearest = 0.0 if self.south <= 0 <= self.north else min(abs(self.south), abs(self.north))
        square: float = math.sin(math.radians(nearest)) ** 2
        least: float = _EQUATOR_KM * (1 - _ECCENTRICITY_2) / (1 - _ECCENTRICITY_2 * square) ** 1.5
        return RADIUS_KM / least / math.cos(self.reach / 2) * (1 + 1e-9)

    @property
    def area(self) -> float:
        """In square km."""
        between = math.sin(math.radians(self.north)) - math.sin(math.radians(self.south))
        return RADIUS_KM**2 * 2 * math.radians(self.half_width) * between

    def project(self, latitude: Array, longitude: Array) -> tuple[Array, Array]:
        """Maps places within the bounds to the plane: km east and north of the centre."""
        phi, turned = np.radians(latitude), np.radians(longitude - self.longitude)
        return _project(math.radians(self.latitude), phi, turned)

    def place(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The latitude and longitude of points of the plane; of points outside of the region, the nearest place in it.

        Points off the map, further than the antipode of the centre, count as the nearest on it.
        """
        phi0 = math.radians(self.latitude)
        far = np.hypot(x, y)
        shrink = np.minimum(1.0, 2 * RADIUS_KM / np.maximum(far, 1e-300))
        x, y, square = x * shrink / RADIUS_KM, y * shrink / RADIUS_KM, (far * shrink / RADIUS_KM) ** 2
        w, up = np.sqrt(np.maximum(1 - square / 4, 0)), 1 - square / 2
        ahead = math.cos(phi0) * up - math.sin(phi0) * y * w
        side, height = x * w, math.sin(phi0) * up + math.cos(phi0) * y * w
        latitude = np.degrees(np.arctan2(height, np.hypot(ahead, side)))
        turned = np.degrees(np.arctan2(side, ahead))
        return self.clamp(latitude, turned)

    def clamp(self, latitude: Array, turned: Array) -> tuple[Array, Array]:
        """The places of the region that are nearest on the sphere.

        Of the places at one latitude, the one with the nearest longitude is the nearest. So the place found lies on the
        same meridian, or on that edge of the region whose meridian is nearer. There, the cosine of the distance is
        sin(p) sin(q) + cos(p) cos(q) cos(b), for the latitudes p and q and the difference b of longitudes. As a
        function of q, that is a cosine about atan2(sin(p), cos(p) cos(b)). The latter lies beyond 90 degrees if the way
        leads over a pole.

        Args:
            latitude: In degrees; beyond a pole, it counts as the pole.
            turned: Longitudes from the middle, -180 to 180 degrees.
        """
        phi = np.radians(np.clip(latitude, -90, 90))
        over = np.radians(np.maximum(np.abs(turned) - self.half_width, 0))
        best = np.degrees(np.arctan2(np.sin(phi), np.cos(phi) * np.cos(over)))
        edge = np.where((best - self.middle[0]) % 360 > 180, self.south, self.north)
        on_meridian = np.where((self.south <= best) & (best <= self.north), best, edge)
        clamped: Array = np.where(over > 0, on_meridian, np.clip(latitude, self.south, self.north))
        longitude = self.longitude + np.clip(turned, -self.half_width, self.half_width)
        if self.west < self.east:
            longitude = np.clip(longitude, self.west, self.east)
        else:
            longitude = (longitude + 180) % 360 - 180
        return clamped, longitude

    def samples(self, count: int) -> tuple[Array, Array]:
        """Latitudes and longitudes of a grid over the region, bounds included, about as dense in both directions.

        Args:
            count: How many places, about.
        """
        nearest = 0.0 if self.south <= 0 <= self.north else min(abs(self.south), abs(self.north))
        width = 2 * self.half_width * max(math.cos(math.radians(nearest)), 1e-6)
        rows = min(max(round(math.sqrt(count * (self.north - self.south) / width)), 3), count // 3)
        latitudes = np.linspace(self.south, self.north, rows)
        turned = np.linspace(-self.half_width, self.half_width, max(count // rows, 3))
        latitude, column = (grid.ravel() for grid in np.meshgrid(latitudes, turned, indexing="ij"))
        return latitude, self.longitude + column

    def cell_ranges(self, spacing: float) -> tuple[tuple[int, int], ...]:
        """The least and the largest q, r and q + r of the cells that hold places of the region.

        A place's own coordinates are within 2/3 of its cell's, and those of the edges between the places that stand for
        them are less than an eighth of a second difference beyond these. A release forces each cell into the ranges, so
        the loss over the region holds even if they were too narrow. The loss by distance needs them wide enough: a
        place out of them counts as the middle of the region, however near its neighbours are.

        Args:
            spacing: The distance of neighbouring cells, in km.
        """
        q, r = axial(*self.project(*self._edges()), spacing)
        ranges = []
        for along in (q, r, q + r):
            low, high = float(along.min()), float(along.max())
            bend = float(np.abs(np.diff(along.reshape(-1, _EDGE), 2)).max()) / 4
            slack = 1e-6 * (1 + high - low) + bend
            ranges.append((math.ceil(low - slack - 2 / 3), math.floor(high + slack + 2 / 3)))
        return tuple(ranges)

    def _edges(self) -> tuple[Array, Array]:
        latitude, turned = _edges(self.south, self.north, self.half_width)
        return latitude, self.longitude + turned


def _edges(south: float, north: float, half_width: float) -> tuple[Array, Array]:
    """Places along the four edges: latitudes, and longitudes from the middle."""
    rows, columns = np.linspace(south, north, _EDGE), np.linspace(-half_width, half_width, _EDGE)
    latitude = np.concatenate([rows, rows, np.full(_EDGE, south), np.full(_EDGE, north)])
    turned = np.concatenate([np.full(_EDGE, -half_width), np.full(_EDGE, half_width), columns, columns])
    return latitude, turned


def _project(phi0: float, phi: Array, turned: Array) -> tuple[Array, Array]:
    cosine = np.cos(phi) * np.cos(turned)
    sine = np.sin(phi)
    scale: Array = RADIUS_KM * np.sqrt(2 / (1 + math.sin(phi0) * sine + math.cos(phi0) * cosine))
    x: Array = scale * np.cos(phi) * np.sin(turned)
    y: Array = scale * (math.cos(phi0) * sine - math.sin(phi0) * cosine)
    return x, y


def axial(x: Array, y: Array, spacing: float) -> tuple[Array, Array]:
    """The coordinates q and r of points of the plane, not rounded."""
    r: Array = y / (spacing * _SIN_60)
    return x / spacing - r / 2, r


def cells_at(x: Array, y: Array, spacing: float) -> tuple[Integers, Integers]:
    """The cells q and r whose centres are nearest to points of the plane."""
    q, r = axial(x, y, spacing)
    cube = np.stack([q, r, -q - r])
    rounded = np.rint(cube)
    worst = np.abs(rounded - cube)
    q_off = (worst[0] > worst[1]) & (worst[0] > worst[2])
    r_off = ~q_off & (worst[1] > worst[2])
    found_q = np.where(q_off, -rounded[1] - rounded[2], rounded[0])
    found_r = np.where(r_off, -rounded[0] - rounded[2], rounded[1])
    return found_q.astype(np.int64), found_r.astype(np.int64)


def centres(q: Integers, r: Integers, spacing: float) -> tuple[Array, Array]:
    """The centres of cells in the plane, in km."""
    x: Array = spacing * (q + r / 2)
    return x, spacing * _SIN_60 * r.astype(np.float64)


def region_of(rules: pb.Location) -> Region:
    """The region that a rule declares.

    Raises:
        BadRuleError: It is not declared, or it is none, or larger than the map.
    """
    names = ("min_latitude", "max_latitude", "min_longitude", "max_longitude")
    missing = [name for name in names if not rules.HasField(name)]
    if missing:
        raise BadRuleError(
            "region", f"has no {' and no '.join(missing)}", "set the four bounds of a public region"
        )
    south, north = rules.min_latitude, rules.max_latitude
    west, east = rules.min_longitude, rules.max_longitude
    if not -90 <= south < north <= 90:
        raise BadRuleError(
            "region", "min_latitude has to be below max_latitude, and both from -90 to 90 degrees"
        )
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        raise BadRuleError(
            "region",
            "min_longitude and max_longitude have to be from -180 to 180 degrees",
            "where the region crosses the antimeridian, min_longitude is the larger: 170 and -170",
        )
    if west == east:
        raise BadRuleError(
            "region", "min_longitude and max_longitude are equal", "-180 to 180 is all around the Earth"
        )
    width = east - west if east > west else east - west + 360
    middle = (west + width / 2 + 180) % 360 - 180
    latitude, reach = _centre(south, north, width / 2)
    if reach > _FARTHEST:
        raise BadRuleError(
            "region",
            f"reaches {math.degrees(reach):.0f} degrees from its middle, and no map shows more than 150",
            "leave out where nothing is, such as latitudes below -60",
        )
    return Region(south, north, west, east, width / 2, middle, latitude, reach)


@lru_cache(maxsize=256)
def _centre(south: float, north: float, half_width: float) -> tuple[float, float]:
    """The latitude from which the farthest place is nearest, and how far that is, in radians.

    Where the farthest place is not on an edge, it is the antipode of the centre, and so on no map.
    """
    phi, turned = (np.radians(edge)[:, np.newaxis] for edge in _edges(south, north, half_width))
    tried = np.append(np.linspace(-90, 90, _CENTRES), (south + north) / 2)
    phi0 = np.radians(tried)
    # The haversine keeps small angles exact.
    square = np.sin((phi - phi0) / 2) ** 2 + np.cos(phi) * np.cos(phi0) * np.sin(turned / 2) ** 2
    reach = 2 * np.arcsin(np.sqrt(np.minimum(square.max(axis=0), 1)))
    best = int(np.argmin(reach)) if reach.min() < reach[-1] - 1e-3 else len(tried) - 1
    return float(tried[best]), float(reach[best]) + _SLACK
