"""`dpmesh demo`: the fleet example, start to finish, in one terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from dpmesh import extras
from dpmesh.cli.console import InputError, stdout

HELP = (
    "Send a month of a real fleet's reports over gRPC, protected, and show what can still be told from them."
)
EPILOG = "Example: dpmesh demo --reports 5000 --keep fleet-ledgers"

_JAEGER = "http://localhost:4317"


def demo(
    reports: Annotated[
        Optional[int],  # noqa: UP045 - what typer understands in all its versions
        typer.Option(min=1000, help="Only the first so many reports; quicker.", show_default=False),
    ] = None,
    jaeger: Annotated[
        bool, typer.Option("--jaeger", help=f"Send all spans to Jaeger on this machine ({_JAEGER}).")
    ] = False,
    keep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Keep the ledgers in a new directory.", show_default=False),
    ] = None,
) -> None:
    """Runs the demo and prints what it found."""
    from dpmesh_fleet import demo as fleet
    from dpmesh_fleet import tracing

    # The demo has its own configuration. Variables for this shell's services must not change it.
    for name in [name for name in os.environ if name.startswith("DPMESH_")]:
        del os.environ[name]
    endpoint = _JAEGER if jaeger else os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
    if keep is not None and os.path.lexists(keep):
        raise InputError(f"--keep: {keep} exists; its ledgers would continue where they stopped")
    if endpoint and not tracing.answers(endpoint):
        hint = "; `make jaeger` builds one, and deploy/compose starts one" if jaeger else ""
        raise InputError(f"no collector answers at {endpoint}{hint}")
    if keep is not None:
        try:
            keep.mkdir(parents=True)  # Before the demo runs, so that a failure costs no run.
        except OSError as error:
            raise InputError(f"--keep: {keep} can't be made ({error.strerror})") from None
    try:
        fleet.run(stdout(), reports=reports, keep=keep, endpoint=endpoint, jaeger=jaeger)
    except ImportError as error:
        if (error.name or "").startswith("opentelemetry"):
            raise InputError(f"sending spans needs more packages: {extras.install('otel')}") from None
        raise
