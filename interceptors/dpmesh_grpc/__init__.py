"""dpmesh for grpc.aio: client interceptors protect requests, server interceptors protect responses.

channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))
server  = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
"""

from dpmesh_grpc.coverage import aio_client_interceptors, check_channel
from dpmesh_grpc.server import aio_server_interceptors

__all__ = ["aio_client_interceptors", "aio_server_interceptors", "check_channel"]
