"""Prints a trace as a tree, and where traces go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from dpmesh import extras
from dpmesh_fleet.show import heading, say
from dpmesh_fleet.tracing import Album

REPORT = "/fleet.v1.Collector/Report"


def traces(console: Console, album: Album | None, endpoint: str | None, *, jaeger: bool) -> None:
    """What a trace of one report looks like, and where traces go."""
    heading(console, "a trace of one report")
    if album is None:
        say(console, f"No spans were recorded: {extras.install('otel')}; then run this again.")
        return
    for decision, first in (("released", ""), ("refused", "and of one that was refused:")):
        spans = album.traces.get((REPORT, decision))
        if spans:
            if first:
                say(console, first)
            console.print(tree(spans))
    if jaeger:
        say(console, "All spans are in Jaeger, as the service dpmesh-fleet: http://localhost:16686")
        say(console, "Search for the tag dpmesh.decision=refused, or dpmesh.budget.state=low.")
    elif endpoint:
        say(console, f"All spans went to {endpoint}, as the service dpmesh-fleet.")
    else:
        say(console, "They go to a collector when OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 is set.")


def tree(spans: Sequence[Any]) -> Group:
    """Spans of one trace, each under its parent."""
    known = {span.context.span_id for span in spans}
    roots = [span for span in spans if span.parent is None or span.parent.span_id not in known]
    return Group(*(_branch(root, spans, None) for root in sorted(roots, key=_start)))


def _branch(span: Any, spans: Sequence[Any], above: Tree | None) -> Tree:
    took = (span.end_time - span.start_time) / 1e6
    label = Text.assemble((span.name, "bold"), f"  ({span.kind.name.lower()}, {took:.2f} ms)")
    if span.name == "dpmesh.release":
        for name, value in sorted(span.attributes.items()):
            label.append(f"\n{name} = ", "dim")
            label.append(_shown(value))
    branch = above.add(label) if above is not None else Tree(label)
    children = [entry for entry in spans if entry.parent and entry.parent.span_id == span.context.span_id]
    for child in sorted(children, key=_start):
        _branch(child, spans, branch)
    return branch


def _start(span: Any) -> int:
    return int(span.start_time)


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(str(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
