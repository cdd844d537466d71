"""Telemetry: one span and a few counts for each release; what it cost, never what it said."""

from dpmesh.telemetry import names
from dpmesh.telemetry.recorder import Telemetry
from dpmesh.telemetry.setup import configure_from_environment
from dpmesh.telemetry.spans import refused_status

__all__ = ["Telemetry", "configure_from_environment", "names", "refused_status"]
