"""The push service of policies over grpc.aio: its server, and the client that each device runs."""
