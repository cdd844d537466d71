"""Differential privacy on the wire between machines.

async with dpmesh.open("dpmesh.toml") as mesh:
    server  = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
    channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpmesh import errors

if TYPE_CHECKING:
    from dpmesh.mesh.mesh import Mesh, Receipt, ReleaseStream, open

__version__ = "0.1.0"

__all__ = ["Mesh", "Receipt", "ReleaseStream", "__version__", "errors", "open"]


def __getattr__(name: str) -> Any:
    """Loads the engine when it is first asked for: generated code and the command line import this package too."""
    if name not in __all__:
        raise AttributeError(f"module 'dpmesh' has no attribute {name!r}")
    from dpmesh.mesh import mesh

    return getattr(mesh, name)
