"""The policy that was taken last comes back as it was, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dpmesh.errors import ConfigError, DpmeshError
from dpmesh.rollout.last_good import LastGood


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
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
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


WRITER = """
    import sys
    from pathlib import Path
    from dpmesh.rollout.last_good import LastGood
    good = LastGood(Path(sys.argv[1]))
    for epoch in range(1, 1_000_000):
        good.store(epoch, b"%d" % epoch * 5_000)
        print(epoch, flush=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_policy_or_the_new_one(path):
    last = 0
    for _ in range(20):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE
        )
        for _ in range(1 + last % 7):
            last = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        last = int((writer.stdout.read().split() or [last])[-1])
        writer.stdout.close()
        writer.wait()
        content = LastGood(path).load()
        assert content in (b"%d" % last * 5_000, b"%d" % (last + 1) * 5_000)
        last += 1
