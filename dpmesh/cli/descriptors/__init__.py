"""Descriptors that commands examine: from .proto files, descriptor sets or a live server."""
