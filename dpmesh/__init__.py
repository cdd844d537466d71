"""Differential privacy on the wire between machines.

async with dpmesh.open("dpmesh.toml") as mesh:
    server  = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
    channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dpmesh import errors

if TYPE_CHECKING:
    from dpmesh.mesh.mesh import Mesh
    from dpmesh.mesh.opening import open
    from dpmesh.mesh.receipt import Receipt
    from dpmesh.mesh.stream import ReleaseStream

__version__ = "0.1.0"

# The module of dpmesh.mesh that has each of the engine's public names.
_MODULES = {"Mesh": "mesh", "Receipt": "receipt", "ReleaseStream": "stream", "open": "opening"}

__all__ = ["Mesh", "Receipt", "ReleaseStream", "__version__", "errors", "open"]


def __getattr__(name: str) -> Any:
    """Loads the engine when it is first asked for: generated code and the command line import this package too."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dpmesh' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dpmesh.mesh.{_MODULES[name]}"), name)
