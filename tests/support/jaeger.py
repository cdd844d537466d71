"""A real Jaeger for tests: the v1 all-in-one binary on free ports of the loopback interface, storing in memory."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
# Every listener that the all-in-one binary opens, so that none is left on a fixed port or another interface.
FLAGS = {
    "otlp": "collector.otlp.grpc.host-port",
    "otlp_http": "collector.otlp.http.host-port",
    "collector_grpc": "collector.grpc-server.host-port",
    "collector_http": "collector.http-server.host-port",
    "query": "query.http-server.host-port",
    "query_grpc": "query.grpc-server.host-port",
    "admin": "admin.http.host-port",
}


def find() -> Path | None:
    """The binary that `make jaeger` found or built: JAEGER_BINARY, .cache/jaeger, or on the PATH."""
    named = os.environ.get("JAEGER_BINARY")
    built = sorted((ROOT / ".cache" / "jaeger").glob("jaeger-all-in-one-v*[0-9]"))
    on_path = [shutil.which(name) for name in ("jaeger-all-in-one", "jaeger")]
    candidates = [Path(named)] if named else [*reversed(built), *(Path(path) for path in on_path if path)]
    return next((path for path in candidates if _is_v1(path)), None)


def _is_v1(path: Path) -> bool:
    """Version 2 is configured otherwise."""
    if not os.access(path, os.X_OK):
        return False
    done = subprocess.run([path, "help"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return f"--{FLAGS['otlp']}" in done.stdout


@dataclass(frozen=True)
class Span:
    """A span as Jaeger's query API tells it."""

    trace: str
    id: str
    parent: str | None
    name: str
    service: str
    tags: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]


class Jaeger:
    """The process; use it with `with`. It is stopped by its own pid, and only it.

    Attributes:
        endpoint: Where OTLP goes, over gRPC.
        pid: Of the process.
    """

    def __init__(self, binary: Path, log: Path) -> None:
        self._binary = binary
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['otlp']}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it answers; another program may take a port in between, so it may try again."""
        for _ in range(3):
            self._ports = dict(zip(FLAGS, _free_ports(len(FLAGS)), strict=True))
            with self._log.open("wb") as log:
                self._process = self._spawn(log)
            if _until(lambda: self._ended() or self._ready()) and not self._ended():
                return
            self.stop()
        raise AssertionError(f"Jaeger did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        flags = [f"--{flag}=127.0.0.1:{self._ports[name]}" for name, flag in FLAGS.items()]
        # Nothing of this process' environment: Jaeger reads OTEL_, COLLECTOR_, SPAN_STORAGE_TYPE and more there.
        return subprocess.Popen(
            [self._binary, *flags, "--memory.max-traces=100000"],
            env={"PATH": os.environ["PATH"], "SPAN_STORAGE_TYPE": "memory"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def stop(self) -> None:
        if self._process is None:
            return
        # It keeps everything in memory, and on a gentler signal waits for its clients to go.
        self._process.kill()
        self._process.wait()
        self._process = None

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _ready(self) -> bool:
        try:
            return self._get("admin", "/")[0] == 200 and self._get("query", "/api/services")[0] == 200
        except OSError:
            return False

    def _get(self, server: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[server], timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, path: str, **parameters: Any) -> bytes:
        """What the query API answers, as it is."""
        status, body = self._get("query", f"/api/{path}?{urlencode(parameters)}")
        assert status == 200, body[:500]
        return body

    def services(self) -> set[str]:
        return set(json.loads(self.raw("services"))["data"] or ())

    def traces(self, service: str, tags: Mapping[str, str] | None = None) -> bytes:
        """The JSON of all traces of a service that have a span with all of these tags."""
        matching = {"tags": json.dumps(tags)} if tags else {}
        return self.raw("traces", service=service, limit=100_000, lookback="1h", **matching)

    def spans(self, service: str, tags: Mapping[str, str] | None = None) -> list[Span]:
        """The spans of these traces, those of other services and those without the tags included."""
        return list(parsed(self.traces(service, tags)))

    def matching(self, service: str, tags: Mapping[str, str]) -> list[Span]:
        """The spans of a service that have all of these tags."""
        found = self.spans(service, tags)
        return [span for span in found if span.service == service and tags.items() <= span.tags.items()]

    def wait_for(self, service: str, name: str, count: int) -> None:
        """Waits until Jaeger has stored so many spans of a name: it answers the exporter before that."""

        def stored() -> int:
            return sum(span.name == name and span.service == service for span in self.spans(service))

        assert _until(lambda: stored() >= count), f"{stored()} spans {name} of {service} instead of {count}"

    def wait_for_parents(self, service: str) -> None:
        """Waits until Jaeger has the parents of all spans in a service's traces: it stores spans in any order."""

        def orphans() -> set[tuple[str, str | None]]:
            spans = self.spans(service)
            parents = {(span.trace, span.parent) for span in spans if span.parent is not None}
            return parents - {(span.trace, span.id) for span in spans}

        assert _until(lambda: not orphans()), f"{len(orphans())} parents of spans of {service} are missing"


def parsed(body: bytes) -> Iterator[Span]:
    """The spans of a response of /api/traces."""
    for trace in json.loads(body)["data"]:
        for span in trace["spans"]:
            parents = [entry["spanID"] for entry in span["references"] if entry["refType"] == "CHILD_OF"]
            yield Span(
                trace=span["traceID"],
                id=span["spanID"],
                parent=parents[0] if parents else None,
                name=span["operationName"],
                service=trace["processes"][span["processID"]]["serviceName"],
                tags={tag["key"]: tag["value"] for tag in span["tags"]},
                events=tuple(
                    {field["key"]: field["value"] for field in log["fields"]} for log in span["logs"]
                ),
            )


def _free_ports(count: int) -> list[int]:
    """Different ones, that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _until(condition: Callable[[], object]) -> bool:
    """Asks again and again until it holds or patience ends."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
