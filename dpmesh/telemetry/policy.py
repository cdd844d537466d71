"""Telemetry of policies that are followed: what became of them, and whether a mesh has the newest one."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from dpmesh.telemetry import names
from dpmesh.telemetry.meters import ByProvider, is_api_only, no_span, version

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.trace import Tracer

# The values of the gauge names.POLICY_STATE.
_STATES = {"fresh": 0, "stale": 1, "expired": 2}


class Status(Protocol):
    """Where a mesh stands with its policy: its state, its epoch, and seconds since the source last answered."""

    @property
    def state(self) -> str: ...  # noqa: D102

    @property
    def epoch(self) -> int: ...  # noqa: D102

    @property
    def age(self) -> float: ...  # noqa: D102


class PolicyTelemetry:
    """Records one mesh's policies on OpenTelemetry's global providers.

    Does nothing, and imports nothing of OpenTelemetry, until refresh() finds a listener.

    Args:
        status: Where the mesh stands. The thread that exports metrics calls it, until close().
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self.status = status
        self._tracer: Tracer | None = None
        self._metering = False
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
        if not is_api_only(metering):
            _by_provider.of(metering)
        self._providers = (tracing, metering)

    def happened(self, event: str, epoch: int) -> None:
        """Records what happened to a policy.

        Args:
            event: One of the values of names.POLICY_EVENT.
            epoch: Of the policy.
        """
        if self._tracer is None:
            return
        attributes: dict[str, str | int] = {names.POLICY_EVENT: event, names.POLICY_EPOCH: epoch}
        now = time.time_ns()
        self._tracer.start_span(names.POLICY, no_span(), attributes=attributes, start_time=now).end(now)

    def close(self) -> None:
        """Stops reporting the mesh."""
        with _by_provider.lock:
            _watched.discard(self)


class _Meters:
    """The instruments of one meter provider."""

    def __init__(self, meter: Meter) -> None:
        from opentelemetry.metrics import Observation

        self._observation = Observation
        self._context = no_span()  # So that no exemplar links a measurement to a trace.
        gauges: tuple[tuple[str, str, str, Callable[[list[Status]], float]], ...] = (
            (
                names.POLICY_STATE,
                "1",
                "0: the mesh has the newest policy; 1: stale; 2: expired; of several, the worst",
                lambda found: max(_STATES[each.state] for each in found),
            ),
            (
                names.POLICY_EPOCH,
                "1",
                "The epoch of the policy in force; of several, the oldest",
                lambda found: min(each.epoch for each in found),
            ),
            (
                names.POLICY_AGE,
                "s",
                "Time since the source last showed what is newest; of several, the longest",
                lambda found: max(each.age for each in found),
            ),
        )
        for name, unit, description, value in gauges:
            meter.create_observable_gauge(
                name, callbacks=[self._observer(value)], unit=unit, description=description
            )

    def _observer(
        self, value: Callable[[list[Status]], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with _by_provider.lock:
                found = [each.status() for each in _watched]
            return [self._observation(value(found), None, self._context)] if found else []

        return observe


_by_provider = ByProvider(_Meters)
# The meshes of the process that follow a source; the lock of `_by_provider` guards them, too.
_watched: weakref.WeakSet[PolicyTelemetry] = weakref.WeakSet()
