"""Since when a device has a policy that waits, over restarts and whatever is in the file."""

from __future__ import annotations

import pytest

from dpmesh.rollout.held import Held


def test_the_policy_that_was_held_last_is_known_after_a_restart(tmp_path):
    path = tmp_path / "folder" / "held"
    held = Held(path)
    assert held.since(b"a", 7.0) == 7.0
    held.remember(b"a", 7.0)
    for known in (held, Held(path)):
        assert (known.since(b"a", 9.0), known.since(b"b", 9.0)) == (7.0, 9.0)
    held.remember(b"b", 8.0)
    assert (Held(path).since(b"a", 9.0), Held(path).since(b"b", 9.0)) == (9.0, 8.0)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_clock_that_was_set_back_counts(tmp_path):
    held = Held(tmp_path / "held")
    held.remember(b"a", 100.0)
    assert Held(tmp_path / "held").since(b"a", 50.0) == 50.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"sha256": "x", "since": "y"}',
        b'{"sha256": "x", "since": NaN}',
        b"\xff",
        b"[" * 99_999,
    ],
)
def test_a_damaged_file_makes_every_policy_new(tmp_path, content):
    path = tmp_path / "held"
    path.write_bytes(content)
    path.chmod(0o600)
    assert Held(path).since(b"a", 9.0) == 9.0


def test_a_file_that_others_may_write_is_not_believed(tmp_path):
    path = tmp_path / "held"
    Held(path).remember(b"a", 7.0)
    path.chmod(0o666)
    assert Held(path).since(b"a", 9.0) == 9.0


def test_without_a_disk_it_is_remembered_as_long_as_the_process_runs(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (None, tmp_path / "file" / "held"):
        held = Held(path)
        held.remember(b"a", 7.0)
        assert held.since(b"a", 9.0) == 7.0
