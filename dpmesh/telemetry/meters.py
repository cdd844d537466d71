"""Meters: the counters and histograms of one meter provider, which all meshes of the process share."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dpmesh import forks
from dpmesh.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

_Instruments = TypeVar("_Instruments")

# Seconds. A release from a held lease takes tens of microseconds; a release that waits for a disk takes milliseconds.
_BOUNDARIES = tuple(m * 10.0**e for e in range(-5, 1) for m in (1.0, 2.5, 5.0))
# How many durations a series records per second at most, because recording one takes the SDK as long as a release.
# Counts are always complete.
_DURATIONS = 100


class Series:
    """The counts under one set of labels.

    Attributes:
        labels: Method, mechanism, decision, budget.
        releases: How many messages.
        loss: The sum of their epsilons.
        times: Until when the durations recorded so far use up the allowed rate, in monotonic seconds.
    """

    __slots__ = ("labels", "loss", "releases", "times")

    def __init__(self, key: tuple[str, str, str, str]) -> None:
        labels = (names.LABEL_METHOD, names.LABEL_MECHANISM, names.LABEL_DECISION, names.LABEL_BUDGET)
        self.labels = dict(zip(labels, key, strict=True))
        self.releases = 0
        self.loss = 0.0
        self.times = 0.0


# The counters whose only label is the method, with their units and descriptions.
_COUNTS = {
    names.ITEMS_CUT: ("{item}", "Elements beyond max_items, of fields whose length is public"),
    names.OBSERVED_REFUSALS: ("{message}", "Messages that observe mode let pass, and that would be refused"),
}


class Meters:
    """The instruments of one meter provider.

    Counters are summed here under a lock, and read on export, because the SDK's own counters take 6 us for each call.
    The API offers nothing like that for histograms, so durations go to the SDK's; a busy series records a sample.
    """

    def __init__(self, meter: Meter) -> None:
        from opentelemetry.metrics import Observation

        self._series: dict[tuple[str, str, str, str], Series] = {}
        # By metric and method.
        self._counts: dict[str, dict[str, int]] = {name: {} for name in _COUNTS}
        self._lock = threading.Lock()
        self._observation = Observation
        self._context = no_span()  # So that no exemplar links a measurement to a trace.
        self._record_release = meter.create_histogram(
            names.RELEASE_DURATION,
            unit="s",
            description="Time from a message's arrival at dpmesh to its release or refusal",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        ).record
        self._record_commit = meter.create_histogram(
            names.LEDGER_DURATION,
            unit="s",
            description="Time that one durable write to the ledger takes",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        ).record
        meter.create_observable_counter(
            names.RELEASES,
            callbacks=[self._observer(lambda series: series.releases)],
            unit="{message}",
            description="Messages by decision",
        )
        meter.create_observable_counter(
            names.PRIVACY_LOSS,
            callbacks=[self._observer(lambda series: series.loss)],
            unit="1",
            description="Privacy loss (epsilon) of what was released",
        )
        for name, (unit, description) in _COUNTS.items():
            meter.create_observable_counter(
                name, callbacks=[self._counts_of(name)], unit=unit, description=description
            )
        forks.register(self)

    def add(self, key: tuple[str, str, str, str], count: int, epsilon: float, seconds: float) -> None:
        """Counts releases of one kind; the key is (method, mechanism, decision, budget)."""
        with self._lock:
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = Series(key)
            series.releases += count
            series.loss += epsilon
            now = time.monotonic()
            times = max(series.times, now - 1)
            sampled = times <= now
            if sampled:
                series.times = times + 1 / _DURATIONS
        if sampled:
            self._record_release(seconds, series.labels, self._context)

    def count(self, name: str, method: str, count: int) -> None:
        """Adds to one of the metrics that only have a method."""
        with self._lock:
            counts = self._counts[name]
            counts[method] = counts.get(method, 0) + count

    def ledger(self, seconds: float) -> None:
        """Records how long one durable write took."""
        self._record_commit(seconds, None, self._context)

    def after_fork_in_child(self) -> None:
        """Starts from zero, because the parent exports its own counts."""
        self._lock = threading.Lock()
        self._series = {}
        self._counts = {name: {} for name in _COUNTS}

    def _counts_of(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                read = list(self._counts[name].items())
            return [
                self._observation(count, {names.LABEL_METHOD: method}, self._context)
                for method, count in read
            ]

        return observe

    def _observer(
        self, value: Callable[[Series], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                read = [(value(series), series.labels) for series in self._series.values()]
            return [self._observation(total, labels, self._context) for total, labels in read]

        return observe


def no_span() -> Context:
    """A context without a span. It is not empty, because an empty context means the current one."""
    from opentelemetry.context import Context

    return Context({names.SCOPE: True})


class ByProvider(Generic[_Instruments]):
    """The instruments of each meter provider, made once, so that no process registers them twice.

    Attributes:
        lock: Guards them.
    """

    def __init__(self, make: Callable[[Meter], _Instruments]) -> None:
        self.lock = threading.Lock()
        self._make = make
        self._made: weakref.WeakKeyDictionary[Any, _Instruments] = weakref.WeakKeyDictionary()
        forks.register(self)

    def of(self, provider: MeterProvider) -> _Instruments | None:
        """The instruments of a provider, or None if it records nothing."""
        from opentelemetry.metrics import NoOpMeter

        with self.lock:
            made = self._made.get(provider)
            if made is None:
                meter = provider.get_meter(names.SCOPE, version())
                if isinstance(meter, NoOpMeter):
                    return None
                made = self._made[provider] = self._make(meter)
            return made

    def after_fork_in_child(self) -> None:
        """Replaces the lock, which another thread of the parent may have held."""
        self.lock = threading.Lock()


by_provider = ByProvider(Meters)


def is_api_only(provider: object) -> bool:
    """Whether a provider is one of the API's own, which record nothing."""
    return type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def version() -> str | None:
    """The version of dpmesh, or None if it is not installed."""
    import importlib.metadata  # takes milliseconds

    try:
        return importlib.metadata.version("dpmesh")
    except importlib.metadata.PackageNotFoundError:
        return None
