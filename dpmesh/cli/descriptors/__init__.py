"""Descriptors that commands look at: from .proto files, descriptor sets or a live server."""
