"""Differential privacy on the wire between machines.

async with dpmesh.open("dpmesh.toml") as mesh:
    server  = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
    channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))
"""

from dpmesh import errors
from dpmesh.mesh import Mesh, Receipt, ReleaseStream, open

__version__ = "0.1.0"

__all__ = ["Mesh", "Receipt", "ReleaseStream", "__version__", "errors", "open"]
