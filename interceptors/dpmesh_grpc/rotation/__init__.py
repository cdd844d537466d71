"""Channels and servers that follow the rotation of an identity."""
