"""What dpmesh needs of grpc.aio: calls, threads."""
