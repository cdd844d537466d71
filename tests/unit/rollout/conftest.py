import pytest

from tests.support.tuf_repositories import Device, Repository, policy


@pytest.fixture
def repository(tmp_path):
    """A repository with a policy of epoch 1."""
    made = Repository(tmp_path / "repository")
    made.add(policy(1))
    made.publish()
    return made


@pytest.fixture
def device(tmp_path, repository):
    """A device of the repository's fleet, which has asked for nothing yet."""
    return Device(tmp_path / "device", repository)
