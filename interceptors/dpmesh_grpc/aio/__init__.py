"""What dpmesh's interceptors need of grpc.aio: handlers, arities, calls, private names and threads."""
