"""What the push service reads of a repository: version, epochs, digests, share; and what it says of a broken one."""

import pytest

from dpmesh.errors import ConfigError
from dpmesh.rollout.push import published
from dpmesh.rollout.push.published import Published
from tests.support.repositories import UnsignedRepository


@pytest.fixture
def repository(tmp_path):
    return UnsignedRepository(tmp_path / "repository")


def test_a_policy_for_all(repository):
    digest = repository.publish(5, b"x")
    found = published.read(repository.folder)
    assert found == Published(1, 5, digest, 1.0)
    assert list(found.epochs()) == [(5, digest, 1.0)]


def test_a_policy_for_a_part_and_the_one_before(repository):
    former = repository.publish(4, b"x")
    digest = repository.publish(5, b"y", share=0.05, former=(4, former))
    found = published.read(repository.folder)
    assert found == Published(2, 5, digest, 0.05, (4, former))
    assert list(found.epochs()) == [(4, former, 1.0), (5, digest, 0.05)]


def test_a_share_of_another_epoch_does_not_count(repository):
    repository.publish(5, b"y", share=0.05)
    targets = repository.folder / "metadata" / "1.targets.json"
    targets.write_text(targets.read_text().replace('"epoch": 5', '"epoch": 6'))
    assert published.read(repository.folder).share == 1.0


def test_a_repository_without_a_policy(repository):
    repository.publish(5)
    targets = repository.folder / "metadata" / "1.targets.json"
    targets.write_text('{"signed": {"targets": {}}}')
    assert published.read(repository.folder) == Published(1)
    assert list(published.read(repository.folder).epochs()) == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"signed": 3}', '{"signed": {"targets": {"policy.yaml": 1}}}']
)
@pytest.mark.parametrize("name", ["timestamp", "1.snapshot", "1.targets"])
def test_garbage_is_an_error_that_names_the_repository(repository, name, content):
    repository.publish(5)
    (repository.folder / "metadata" / f"{name}.json").write_text(content)
    with pytest.raises(ConfigError, match="its metadata are not those of policies"):
        published.read(repository.folder)


def test_a_missing_file_is_named(repository):
    with pytest.raises(ConfigError, match=r"timestamp.json: can't be read \(No such file"):
        published.timestamp(repository.folder)
