"""Telemetry: records releases on OpenTelemetry's global providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dpmesh.telemetry import meters, names, spans

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | int | float | Sequence[str]]


class Telemetry:
    """Records releases. Does nothing, and imports nothing of OpenTelemetry, until refresh() finds a listener.

    Threads, event loops and other Telemetry objects may record at the same time.

    Attributes:
        tracing: Whether spans are recorded.
        metering: Whether metrics are recorded.
        listening: Whether either is recorded.
    """

    def __init__(self) -> None:
        self.tracing = False
        self.metering = False
        self.listening = False
        self._tracer: Tracer | None = None
        self._write: spans.Write | None = None
        self._meters: meters.Meters | None = None
        self._providers: tuple[object, object] = (None, None)

    def refresh(self) -> None:
        """Checks whether global providers were set since the last call; cheap when they were not."""
        from opentelemetry import metrics, trace

        tracing, metering = trace.get_tracer_provider(), metrics.get_meter_provider()
        if self._providers == (tracing, metering):
            return
        tracer = None if meters.is_api_only(tracing) else tracing.get_tracer(names.SCOPE, meters.version())
        self._tracer = None if isinstance(tracer, trace.NoOpTracer) else tracer
        self._write = None if self._tracer is None else spans.writer(self._tracer)
        self._meters = None if meters.is_api_only(metering) else meters.by_provider.of(metering)
        self.tracing = self._tracer is not None
        self.metering = self._meters is not None
        self.listening = self.tracing or self.metering
        self._providers = (tracing, metering)

    def span(self, attributes: Attributes, start_ns: int, end_ns: int, *, refused: bool = False) -> None:
        """Records a release that has ended, as a child of the current span.

        Args:
            attributes: All of the span's attributes.
            start_ns: When it began, in ns since 1970.
            end_ns: When it ended, in ns since 1970.
            refused: Whether the span gets the error status names.REFUSED_STATUS.
        """
        if self._write is not None:
            self._write(attributes, start_ns, end_ns, refused)

    def open_span(self, attributes: Attributes, start_ns: int) -> Span:
        """Begins the span of a release that takes a while, such as a stream. The caller adds to it and ends it.

        Args:
            attributes: The attributes that are known at the start.
            start_ns: When it began, in ns since 1970.
        """
        tracer = self._tracer
        if tracer is None:
            from opentelemetry.trace import INVALID_SPAN

            return INVALID_SPAN
        return tracer.start_span(names.RELEASE, attributes=attributes, start_time=start_ns)

    def add(
        self,
        method: str,
        mechanisms: str,
        decision: str,
        budget: str,
        count: int,
        epsilon: float,
        seconds: float,
    ) -> None:
        """Counts releases.

        Args:
            method: The RPC's full method, or names.OTHER. The series of a name are kept for ever.
            mechanisms: Names of mechanisms, joined by commas.
            decision: One of the decisions in `names`.
            budget: The name of the budget that decided, or "".
            count: How many messages.
            epsilon: The sum of their epsilons.
            seconds: How long one of them took.
        """
        shared = self._meters
        if shared is not None:
            shared.add((method, mechanisms, decision, budget), count, epsilon, seconds)

    def count(self, name: str, method: str, count: int) -> None:
        """Adds to names.ITEMS_CUT or names.OBSERVED_REFUSALS; the method as for `add`."""
        shared = self._meters
        if shared is not None:
            shared.count(name, method, count)

    def ledger(self, seconds: float) -> None:
        """Records how long one durable write to the ledger took, in seconds."""
        shared = self._meters
        if shared is not None:
            shared.ledger(seconds)
