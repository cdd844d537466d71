"""The policy that was taken last comes back as it was, or not at all."""

from __future__ import annotations

import itertools
import os
import signal
import sys

import pytest

from dpmesh import files
from dpmesh.errors import ConfigError, DpmeshError
from dpmesh.rollout import last_good
from dpmesh.rollout.last_good import LastGood
from tests.support import children


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "a.policy"


def test_what_was_stored_is_loaded_byte_for_byte(path):
    content = b"epoch: 3\n\x00\xff\n...\n"
    assert LastGood(path).load() is None
    LastGood(path).store(3, content)
    assert LastGood(path).load() == content
    assert path.stat().st_mode & 0o777 == 0o600
    LastGood(path).store(3, b"other")
    LastGood(path).store(4, b"")
    assert LastGood(path).load() == b""


def test_an_older_policy_never_replaces_a_newer_one(path):
    LastGood(path).store(5, b"new")
    with pytest.raises(ConfigError, match="4 is smaller than 5, which another process has taken"):
        LastGood(path).store(4, b"old")
    assert LastGood(path).load() == b"new"


def test_a_damaged_file_is_refused_and_not_forgotten(path):
    LastGood(path).store(5, b"a long policy")
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in range(len(whole))]
    for content in (*damaged, whole.replace(b": 5", b": Infinity"), b"[" * 99_999):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"policy\.cache: .*damaged"):
            LastGood(path).load()
        with pytest.raises(DpmeshError, match=r"policy\.cache: .*damaged"):
            LastGood(path).store(6, b"another")
    path.write_bytes(whole)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="only its owner"):
        LastGood(path).load()


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DpmeshError, match=r"policy\.cache: .*cache: can't be written"):
        LastGood(tmp_path / "cache" / "a.policy").store(1, b"")


OLD, NEW = b"old" * 5_000, b"new" * 5_000


def stored_up_to(path, lines):
    """Stores NEW in a child that kills itself before it runs so many lines; returns whether it got to the end."""

    def run():
        left = lines

        def line(frame, event, _):
            nonlocal left
            left -= event == "line"
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return line

        traced = (files.__file__, last_good.__file__)
        sys.settrace(lambda frame, *_: line if frame.f_code.co_filename in traced else None)
        LastGood(path).store(2, NEW)

    pid, reader = children.start(run)
    os.close(reader)
    return os.waitpid(pid, 0)[1] == 0


def test_a_process_that_is_killed_at_any_line_leaves_the_old_policy_or_the_new_one(path):
    LastGood(path).store(1, OLD)
    before, found = path.read_bytes(), []
    for lines in itertools.count():
        path.write_bytes(before)
        ended = stored_up_to(path, lines)
        found.append(LastGood(path).load())
        if ended:
            break
    assert set(found) == {OLD, NEW}
    assert found == sorted(found, reverse=True), "once there, it stays"
    assert len(found) > 30
    LastGood(path).store(3, b"The lock is free.")
