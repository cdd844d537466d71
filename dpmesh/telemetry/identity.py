"""Telemetry of identities: a span for each new identity, the age of the oldest one in force, and failures.

It records no serial and no SPIFFE ID. Every span is the root of its own trace, so that no trace outlives an identity.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dpmesh.telemetry import names
from dpmesh.telemetry.meters import ByProvider, is_api_only, no_span, version

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.trace import Tracer


class IdentityTelemetry:
    """Records the rotations of one identity on OpenTelemetry's global providers.

    Does nothing, and imports nothing of OpenTelemetry, until refresh() finds a listener. Any thread may call it.

    Args:
        age: Seconds since the identity in force was obtained, or None when there is none. The thread that exports
            metrics calls it, until close().
    """

    def __init__(self, age: Callable[[], float | None]) -> None:
        self.age = age
        self._tracer: Tracer | None = None
        self._meters: _Meters | None = None
        self._providers: tuple[object, object] = (None, None)
        with _by_provider.lock:
            _watched.add(self)

    def refresh(self) -> None:
        """Checks whether global providers were set since the last call; cheap when they were not."""
        if "opentelemetry.trace" not in sys.modules and "opentelemetry.metrics" not in sys.modules:
            return  # No provider can have been set.
        from opentelemetry import metrics, trace

        tracing, metering = trace.get_tracer_provider(), metrics.get_meter_provider()
        if self._providers == (tracing, metering):
            return
        self._tracer = None if is_api_only(tracing) else tracing.get_tracer(names.SCOPE, version())
        self._meters = None if is_api_only(metering) else _by_provider.of(metering)
        self._providers = (tracing, metering)

    def rotated(self, generation: int, reason: str, overlap: float, start_ns: int, end_ns: int) -> None:
        """Records that an identity came into force.

        Args:
            generation: 1 for the first.
            reason: Why it was fetched.
            overlap: For how many seconds the previous one is still valid.
            start_ns: When the fetch began, in ns since 1970.
            end_ns: When the identity came into force, in ns since 1970.
        """
        if self._tracer is None:
            return
        attributes: dict[str, str | int | float] = {
            names.IDENTITY_GENERATION: generation,
            names.IDENTITY_REASON: reason,
            names.IDENTITY_OVERLAP: overlap,
        }
        span = self._tracer.start_span(
            names.IDENTITY_ROTATE, no_span(), attributes=attributes, start_time=start_ns
        )
        span.end(end_ns)

    def failed(self, reason: str) -> None:
        """Counts a failed attempt; the reason is an IdentityError's."""
        if self._meters is not None:
            self._meters.count_failure(reason)

    def close(self) -> None:
        """Stops reporting the identity's age."""
        with _by_provider.lock:
            _watched.discard(self)


class _Meters:
    """The instruments of one meter provider."""

    def __init__(self, meter: Meter) -> None:
        from opentelemetry.metrics import Observation

        self._observation = Observation
        self._context = no_span()  # So that no exemplar links a measurement to a trace.
        self._add = meter.create_counter(
            names.IDENTITY_FAILURES,
            unit="{failure}",
            description="Attempts that brought no identity, by reason",
        ).add
        meter.create_observable_gauge(
            names.IDENTITY_AGE,
            callbacks=[self._observe],
            unit="s",
            description="Time since the identity in force was obtained; of several, the oldest",
        )

    def count_failure(self, reason: str) -> None:
        self._add(1, {names.LABEL_REASON: reason}, self._context)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        with _by_provider.lock:
            watched = list(_watched)
        ages = [age for age in (telemetry.age() for telemetry in watched) if age is not None]
        return [self._observation(max(ages), None, self._context)] if ages else []


_by_provider = ByProvider(_Meters)
# The identities of the process whose age is reported; the lock of `_by_provider` guards them, too. In a forked child
# each identity stops its own telemetry.
_watched: weakref.WeakSet[IdentityTelemetry] = weakref.WeakSet()
