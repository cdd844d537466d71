"""TufSource on repositories in folders: what it offers, keeps and says."""

import pytest

from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout.source import State
from dpmesh.rollout.tuf_source import TufSource
from tests.support.tuf_repositories import Repository, policy


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "repository")
    made.add(policy(1))
    made.publish()
    return made


@pytest.fixture
def open_source(tmp_path, repository):
    def opened(**options):
        return TufSource(
            f"file://{repository.folder}",
            root=repository.image,
            cache=tmp_path / "cache",
            **options,
        )

    return opened


async def test_it_offers_a_policy_once_and_the_next_one(repository, open_source):
    source = open_source()
    assert source.state is State.STALE
    first = await source.fetch()
    assert (first.document.epoch, first.content, first.signers, first.not_before, first.reason) == (
        1,
        policy(1),
        1,
        0,
        "",
    )
    assert source.state is State.FRESH
    assert await source.fetch() is None
    repository.add(policy(2), not_before=5, reason="less noise")
    repository.publish(targets_keys=repository.keys["targets"])
    second = await source.fetch()
    assert (second.document.epoch, second.signers, second.not_before, second.reason) == (
        2,
        2,
        5,
        "less noise",
    )
    assert await source.fetch() is None


async def test_without_a_network_it_offers_what_the_cache_has(repository, open_source):
    await open_source().fetch()
    repository.folder.rename(repository.folder.with_name("gone"))
    source = open_source()
    assert (await source.fetch()).content == policy(1)
    assert source.state is State.STALE
    with pytest.raises(PolicyUnavailableError):
        await source.fetch()


async def test_a_new_device_without_a_network_has_nothing(repository, open_source):
    repository.folder.rename(repository.folder.with_name("gone"))
    with pytest.raises(PolicyUnavailableError):
        await open_source().fetch()
    repository.folder.with_name("gone").rename(repository.folder)
    source = open_source()
    offer = await source.fetch()
    assert source.restored(offer.kept) == offer
    with pytest.raises(ConfigError):
        source.restored(offer.kept.replace(b"A", b"B"))
