"""What the push service reads of a repository: version, epochs, digests, share; and what it says of a broken one."""

import hashlib
import json

import pytest

from dpmesh.errors import ConfigError
from dpmesh.rollout.push import published
from dpmesh.rollout.push.published import Published
from tests.support.pushed_repositories import PushedRepository


@pytest.fixture
def repository(tmp_path):
    return PushedRepository(tmp_path / "repository")


def test_a_policy_for_all(repository):
    digest = repository.offer(5, b"x")
    found = published.read(repository.folder)
    assert found == Published(1, 5, digest, 1.0)
    assert list(found.epochs()) == [(5, digest, 1.0)]


def test_a_policy_for_a_part_and_the_one_before(repository):
    repository.offer(4, b"x")
    before = published.timestamp(repository.folder)
    digest = repository.offer(5, b"y", share=0.05, former=(4, b"x"))
    found, former = published.read(repository.folder), hashlib.sha256(b"x").digest()
    assert found == Published(2, 5, digest, 0.05, (4, former))
    assert list(found.epochs()) == [(4, former, 1.0), (5, digest, 0.05)]
    assert published.timestamp(repository.folder) != before


def test_a_share_of_another_epoch_does_not_count(repository):
    repository.ring(4, 0.05)
    repository.offer(5, b"y")
    assert published.read(repository.folder).share == 1.0


def test_a_repository_without_a_policy(repository):
    repository.publish()
    assert published.read(repository.folder) == Published(1)
    assert list(published.read(repository.folder).epochs()) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"signed": 3}', '{"signed": {"targets": {"policy.yaml": 1, "ring.json": 1}}}'],
)
@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.rings.json"])
def test_garbage_is_an_error_that_names_the_repository(repository, name, content):
    repository.offer(5, share=0.05)
    repository.write(name, content.encode())
    with pytest.raises(ConfigError, match="its metadata are not those of policies"):
        published.read(repository.folder)


def test_a_share_that_is_none_is_an_error(repository):
    repository.offer(5, share=0.05)
    (ring,) = (repository.folder / "targets").glob("*.ring.json")
    for share in (-1, 2, "x", None):
        ring.write_text(json.dumps({"epoch": 5, "share": share}))
        with pytest.raises(ConfigError, match="its metadata are not those of policies"):
            published.read(repository.folder)


def test_a_missing_file_is_named(repository):
    with pytest.raises(ConfigError, match=r"timestamp.json: can't be read \(No such file"):
        published.timestamp(repository.folder)
