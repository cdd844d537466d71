"""The issuer of identities over gRPC: its server, and the source of identities that asks it."""
