"""Metadata that link the RPCs of one client are taken out."""

import grpc

from dpmesh_grpc.rotation.linkable_metadata import LINKING, stripped

KEPT = ("x-tenant", "acme")


def test_metadata_with_nothing_to_take_out_is_the_same_object():
    for metadata in (None, (), (KEPT,), grpc.aio.Metadata(KEPT)):
        assert stripped(metadata, LINKING) is metadata
    assert tuple(stripped(grpc.aio.Metadata(("baggage", "x"), KEPT), LINKING)) == (KEPT,)
