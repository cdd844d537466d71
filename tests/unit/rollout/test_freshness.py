"""The time without an answer is counted whatever the clock does."""

from __future__ import annotations

import pytest

from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.source import State

DAY = 86400.0


class Clocks:
    """The wall clock, and one that only grows."""

    def __init__(self, now: float = 1000 * DAY) -> None:
        self.now = now
        self.elapsed = 0.0

    def made(self, path=None, longest=DAY) -> Freshness:
        return Freshness(path, longest, lambda: self.now, lambda: self.elapsed)

    def answered(self, path) -> Freshness:
        """A process whose source has answered just now."""
        freshness = self.made(path)
        freshness.answered()
        freshness.note()
        return freshness

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.elapsed += seconds


def test_stale_then_expired_then_fresh():
    clocks = Clocks()
    freshness = clocks.made()
    assert freshness.of(State.FRESH) is State.FRESH
    assert freshness.of(State.STALE) is State.STALE
    clocks.wait(DAY)
    assert freshness.of(State.STALE) is State.STALE
    clocks.wait(1)
    assert freshness.of(State.STALE) is State.EXPIRED
    assert freshness.age == DAY + 1
    freshness.answered()
    assert (freshness.of(State.STALE), freshness.age) == (State.STALE, 0.0)


def test_without_a_limit_nothing_expires():
    clocks = Clocks()
    freshness = clocks.made(longest=None)
    clocks.wait(1000 * DAY)
    assert freshness.of(State.STALE) is State.STALE


@pytest.mark.parametrize("jump", [-DAY, DAY, -500 * DAY, 500 * DAY])
def test_the_clock_of_a_running_process_may_jump(jump):
    clocks = Clocks()
    freshness = clocks.made()
    clocks.now += jump
    clocks.wait(10)
    assert freshness.age == 10


def test_a_restart_goes_on_counting(tmp_path):
    clocks, path = Clocks(), tmp_path / "answered"
    clocks.answered(path)
    clocks.wait(DAY + 1)
    assert clocks.made(path).of(State.STALE) is State.EXPIRED
    clocks.answered(path)
    assert clocks.made(path).of(State.STALE) is State.STALE


def test_a_clock_that_is_set_back_before_a_restart_counts_as_the_latest_time(tmp_path):
    clocks, path = Clocks(), tmp_path / "answered"
    clocks.answered(path)
    clocks.now -= 400 * DAY
    restarted = clocks.made(path)
    assert restarted.age == 0
    clocks.wait(DAY + 1)
    assert restarted.of(State.STALE) is State.EXPIRED


def test_a_source_that_never_answered_expires_over_restarts(tmp_path):
    clocks, path = Clocks(), tmp_path / "answered"
    for _ in range(3):
        clocks.made(path).note()
        clocks.wait(DAY / 2)
    assert clocks.made(path).of(State.STALE) is State.EXPIRED


def test_an_answer_is_written_once_in_a_hundredth_of_the_limit(tmp_path):
    clocks, path = Clocks(), tmp_path / "answered"
    freshness = clocks.answered(path)
    first = path.read_bytes()
    clocks.wait(DAY / 200)
    freshness.answered()
    freshness.note()
    assert path.read_bytes() == first
    clocks.wait(DAY / 100)
    freshness.answered()
    freshness.note()
    assert path.read_bytes() != first


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"nonsense",
        b'{"seen": "x", "answered": 1}',
        b'{"seen": 1.0, "answered": NaN}',
        b"[" * 99_999,
    ],
)
def test_a_damaged_file_counts_as_the_limit(tmp_path, content, caplog):
    path = tmp_path / "answered"
    path.write_bytes(content)
    path.chmod(0o600)
    clocks = Clocks()
    freshness = clocks.made(path)
    assert "can't be read" in caplog.text
    clocks.wait(1)
    assert freshness.of(State.STALE) is State.EXPIRED
    freshness.answered()
    freshness.note()
    assert clocks.made(path).of(State.STALE) is State.STALE


def test_a_clock_that_is_set_back_at_each_restart_stops_nothing(tmp_path):
    clocks, path = Clocks(), tmp_path / "answered"
    clocks.answered(path)
    for _ in range(12):
        clocks.now = 500 * DAY
        restarted = clocks.made(path)
        clocks.wait(DAY / 10)
        restarted.note()
    assert clocks.made(path).of(State.STALE) is State.EXPIRED


def test_after_a_clock_that_was_far_ahead_time_goes_on(tmp_path):
    clocks, path = Clocks(2000 * DAY), tmp_path / "answered"
    clocks.answered(path)
    clocks.now = 1000 * DAY
    for _ in range(12):
        restarted = clocks.made(path)
        clocks.wait(DAY / 10)
        restarted.note()
    assert clocks.made(path).of(State.STALE) is State.EXPIRED


def test_of_processes_that_share_a_file_the_last_answer_counts(tmp_path):
    clocks, path = Clocks(), tmp_path / "answered"
    silent = clocks.made(path)
    silent.note()
    clocks.wait(DAY / 2)
    clocks.answered(path)
    silent.note()
    assert silent.age == DAY / 2
    assert clocks.made(path).age == 0


def test_a_folder_that_can_not_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    freshness = Clocks().answered(tmp_path / "file" / "answered")
    assert freshness.age == 0
