"""Place code: the generated code from a latitude and a longitude to those that leave."""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.noise.draws import Draws
from dpmesh.noise.hexagonal import SHIFT
from dpmesh.policy.codegen.source import drawing_function
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.kinds.region import RADIUS_KM, Region
from dpmesh.policy.plan import Pseudonymise

_MATH = {name: getattr(math, name) for name in ("sin", "cos", "sqrt", "atan2", "hypot")}
_SIN_60 = math.sqrt(3) / 2
_ABSENT = (math.nan, math.nan)

# Maps a latitude and a longitude, in the fields' own units, to those that leave. NaN counts as the region's middle.
Place = Callable[[float, float], tuple[float, float]]


def drawing(
    region: Region, unit: float, spacing: float, draws: Draws, text: str, global_names: Mapping[str, Any]
) -> Place:
    """Compiles what draws a place.

    Args:
        region: Where places can be.
        unit: How many degrees a 1 in the fields means.
        spacing: The distance of the centres of neighbouring cells, in km.
        draws: The mechanism's codes.
        text: Statements from the cell (i, j) of a place and a `code` to the `lat` and `lon` that leave, such as
            `hexagons` or `disk` give.
        global_names: What they refer to.
    """
    body = f"{_clamped(region, unit)}\n{_cell(region, spacing)}\n{text}"
    made: Place = drawing_function(
        draws.pool(), "place", "lat, lon", "code", body, "lat, lon", {**_MATH, **global_names}
    )
    return made


def _clamped(region: Region, unit: float) -> str:
    """Degrees of the nearest place in the region, longitudes from its middle. What is no place counts as the middle."""
    in_degrees = "" if unit == 1 else f"    lat, lon = lat * {unit!r}, lon * {unit!r}\n"
    latitude, _ = region.middle
    return f"""\
if lat == lat and lon - lon == 0:
{in_degrees}    lon = (lon - {region.longitude!r} + 180.0) % 360.0 - 180.0
{textwrap.indent(_nearest(region), "    ")}
else:
    lat, lon = {latitude!r}, 0.0"""


def _nearest(region: Region) -> str:
    """The nearest place in the region, longitudes from its middle: see `Region.clamp`."""
    width = region.half_width
    return f"""\
if {-width!r} <= lon <= {width!r}:
    if lat < {region.south!r}:
        lat = {region.south!r}
    elif lat > {region.north!r}:
        lat = {region.north!r}
else:
    a = min(max(lat, -90.0), 90.0) * {math.pi / 180!r}
    b = (abs(lon) - {width!r}) * {math.pi / 180!r}
    lat = atan2(sin(a), cos(a) * cos(b)) * {180 / math.pi!r}
    if not {region.south!r} <= lat <= {region.north!r}:
        lat = {region.south!r} if (lat - {region.middle[0]!r}) % 360.0 > 180.0 else {region.north!r}
    lon = {width!r} if lon > 0.0 else {-width!r}"""


def _cell(region: Region, spacing: float) -> str:
    """The cell (i, j) of a place, whose point on the map is the nearest centre's: see `region.cells_at`."""
    phi0 = math.radians(region.latitude)
    return f"""\
a = lat * {math.pi / 180!r}
b = lon * {math.pi / 180!r}
s, c = sin(a), cos(a)
g = c * cos(b)
k = {RADIUS_KM / spacing!r} * sqrt(2.0 / (1.0 + {math.sin(phi0)!r} * s + {math.cos(phi0)!r} * g))
r = k * ({math.cos(phi0)!r} * s - {math.sin(phi0)!r} * g) * {1 / _SIN_60!r}
q = k * c * sin(b) - r / 2
i, j, m = round(q), round(r), round(-q - r)
a, b, c = abs(i - q), abs(j - r), abs(m + q + r)
if a > b and a > c:
    i = -j - m
elif b > c:
    j = -i - m"""


def hexagons(
    region: Region, spacing: float, ranges: tuple[tuple[int, int], ...], middle: str, decode: str
) -> str:
    """From a cell to the place of another one, for noise on the whole lattice.

    Args:
        region: Where places can be. What the noise takes out of it leaves as the nearest place in it.
        spacing: The distance of the centres of neighbouring cells, in km.
        ranges: The least and the largest i, j and i + j, which decide what any two places lose.
        middle: The cell that any other one counts as, which there is none of: "i, j".
        decode: From a cell `x` and a `code` to the cell `y`.
    """
    (i0, i1), (j0, j1), (t0, t1) = ranges
    phi0 = math.radians(region.latitude)
    half, mask = 1 << (SHIFT - 1), (1 << SHIFT) - 1
    across = spacing / RADIUS_KM
    return f"""\
if not ({i0} <= i <= {i1} and {j0} <= j <= {j1} and {t0} <= i + j <= {t1}):
    i, j = {middle}
x = (i << {SHIFT}) + j
{decode}
j = ((y + {half}) & {mask}) - {half}
i = (y - j) >> {SHIFT}
a = {across!r} * (i + j / 2)
b = {across * _SIN_60!r} * j
c = a * a + b * b
if c > 4.0:
    s = 2.0 / sqrt(c)
    a, b, c = a * s, b * s, 4.0
s = sqrt(1.0 - c / 4.0)
b *= s
c = 1.0 - c / 2.0
g = {math.cos(phi0)!r} * c - {math.sin(phi0)!r} * b
s = a * s
lat = atan2({math.sin(phi0)!r} * c + {math.cos(phi0)!r} * b, hypot(g, s)) * {180 / math.pi!r}
lon = atan2(s, g) * {180 / math.pi!r}
{_nearest(region)}
lon += {region.longitude!r}
{_turned(region)}"""


def _turned(region: Region) -> str:
    """A longitude as people write it: from -180 to 180, and within the bounds whatever the rounding."""
    if region.west > region.east:
        return "if lon >= 180.0:\n    lon -= 360.0\nelif lon < -180.0:\n    lon += 360.0"
    return f"""\
if lon < {region.west!r}:
    lon = {region.west!r}
elif lon > {region.east!r}:
    lon = {region.east!r}"""


def disk(decode: str) -> str:
    """From a cell to the place of another one, for a mechanism that draws ranks in the cell's order of all cells.

    The text refers to `number_of`, `nearest`, `orders` and `shown`.

    Args:
        decode: From a cell's number `x` and a `code` to a rank `y`.
    """
    # A cell that holds a sliver of the region may have no number.
    return f"""\
x = number_of((i, j))
if x is None:
    x = nearest(i, j)
{decode}
lat, lon = shown[orders[x][y]]"""


def written(unit: float, *, integral: bool) -> str:
    """From degrees to the fields' own units."""
    if integral:
        return f"\nlat, lon = round(lat * {1 / unit!r}), round(lon * {1 / unit!r})"
    return "" if unit == 1 else f"\nlat, lon = lat * {1 / unit!r}, lon * {1 / unit!r}"


def in_units(degrees: float, unit: float, *, integral: bool) -> float:
    """What `written` makes of one number of degrees."""
    value = degrees if unit == 1 else degrees * (1 / unit)
    return round(value) if integral else value


def pairs(field: FieldDescriptor, first: str, second: str, protect: Place, items: int) -> Step:
    """Writes two numbers of a message that is always emitted, and nothing else of it.

    Args:
        field: Holds the message, or a repeated one.
        first: The name of one number's field in the message.
        second: The name of the other's.
        protect: Maps both numbers to those that leave. It gets NaN for those of an absent message.
        items: How many elements of a repeated field leave: more are cut, absent ones are added. 0 for a single one.
    """
    name, read = field.name, operator.attrgetter(first, second)

    def write(into: Any, found: tuple[float, float]) -> None:
        into.SetInParent()
        setattr(into, first, found[0])
        setattr(into, second, found[1])

    def step(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
        numbers = read(getattr(source, name)) if source.HasField(name) else _ABSENT
        write(getattr(target, name), protect(*numbers))

    def elements(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
        numbers = [read(element) for element in getattr(source, name)[:items]]
        numbers += [_ABSENT] * (items - len(numbers))
        into = getattr(target, name)
        for pair in numbers:
            write(into.add(), protect(*pair))

    return elements if items else step
