"""A channel that dpmesh covers only in part is found out before its first RPC."""

from __future__ import annotations

import grpc
import pytest

import dpmesh_grpc
from dpmesh.errors import ConfigError
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors, check_channel

ARITIES = (
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamUnaryClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
)


def channel(*interceptors):
    return grpc.aio.insecure_channel("127.0.0.1:1", interceptors=interceptors)


def test_the_public_names():
    assert all(getattr(dpmesh_grpc, name) is not None for name in dpmesh_grpc.__all__)
    assert {"aio_client_interceptors", "aio_server_interceptors", "check_channel"} <= set(dpmesh_grpc.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        dpmesh_grpc.nonsense  # noqa: B018


async def test_each_of_the_four_is_for_one_arity(mesh):
    ours = aio_client_interceptors(mesh)
    assert [[isinstance(one, arity) for arity in ARITIES] for one in ours] == [
        [row == column for column in range(4)] for row in range(4)
    ]
    assert len(aio_server_interceptors(mesh)) == 1


async def test_a_whole_channel_passes(mesh):
    async with channel(*aio_client_interceptors(mesh)) as whole:
        check_channel(whole)
    async with grpc.aio.insecure_channel("127.0.0.1:1", interceptors=aio_client_interceptors(mesh)) as whole:
        check_channel(whole)


@pytest.mark.parametrize("missing", range(4))
async def test_a_missing_arity_is_named(mesh, missing):
    ours = list(aio_client_interceptors(mesh))
    del ours[missing]
    name = ["unary-unary", "unary-stream", "stream-unary", "stream-stream"][missing]
    async with channel(*ours) as partial:
        with pytest.raises(ConfigError, match=f"{name} RPCs .* 0 of dpmesh"):
            check_channel(partial)


async def test_twice_would_charge_twice(mesh):
    async with channel(*aio_client_interceptors(mesh), *aio_client_interceptors(mesh)) as twice:
        with pytest.raises(ConfigError, match="have 2 of dpmesh"):
            check_channel(twice)


async def test_a_bare_channel_and_no_channel(mesh):
    async with channel() as bare:
        with pytest.raises(ConfigError):
            check_channel(bare)
    with pytest.raises(ConfigError, match=r"not a grpc\.aio channel"):
        check_channel(object())
    with grpc.insecure_channel("127.0.0.1:1") as sync, pytest.raises(ConfigError):
        check_channel(sync)


async def test_the_four_can_only_be_taken_whole(mesh):
    ours = aio_client_interceptors(mesh)
    for part in (0, -1, slice(2)):
        with pytest.raises(ConfigError, match="take all"):
            ours[part]
    with pytest.raises(ValueError):
        channel(ours)


@pytest.mark.parametrize("consumer", [None, b"billing", 7, "\ud800"])
async def test_a_consumer_that_is_no_text_is_refused_before_the_first_rpc(mesh, consumer):
    with pytest.raises(ConfigError, match="consumer: .*allowed: text"):
        aio_client_interceptors(mesh, consumer=consumer)
    aio_client_interceptors(mesh, consumer="")


@pytest.mark.parametrize("interceptors", [aio_client_interceptors, aio_server_interceptors])
@pytest.mark.parametrize("wrong", [None, "dpmesh.toml", {}])
def test_what_is_no_mesh_is_refused_at_once(interceptors, wrong):
    with pytest.raises(ConfigError, match=rf"mesh: a {type(wrong).__name__} .*dpmesh\.open"):
        interceptors(wrong)
