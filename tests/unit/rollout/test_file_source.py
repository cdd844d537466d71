"""A policy file that hangs, is no file, changes its kind, or is another one in another process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest

from dpmesh.config import load
from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout import file_source
from dpmesh.rollout.file_source import FileSource
from dpmesh.rollout.last_good import LastGood
from dpmesh.rollout.source import State
from dpmesh.rollout.sources import open_source


def policy(epoch, version="a"):
    return f"epoch: {epoch}\nversion: {version}\n...\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(policy(1))
    return path


@pytest.fixture
def kept(tmp_path):
    return LastGood(tmp_path / "cache" / "a.policy")


@pytest.fixture
def hanging(monkeypatch):
    """Reads hang until the event is set."""
    going, read = threading.Event(), file_source._read

    def hangs(path):
        going.wait(60)
        return read(path)

    monkeypatch.setattr(file_source, "_read", hangs)
    monkeypatch.setattr(file_source, "_PATIENCE", 0.05)
    yield going
    going.set()


def take(source, file, text):
    file.write_text(text)
    offer = source.first()[0]
    source.keep(offer)
    return offer


async def test_a_file_that_hangs_is_unavailable_and_read_when_it_answers(file, hanging):
    source = FileSource(file)
    threads = threading.active_count()
    for _ in range(5):
        with pytest.raises(PolicyUnavailableError, match="takes too long"):
            await source.fetch()
        assert source.state is State.STALE
    assert threading.active_count() <= threads + 1, "one read hangs, and not one for each look"
    hanging.set()
    end = asyncio.get_running_loop().time() + 30
    while source.state is State.STALE:
        assert asyncio.get_running_loop().time() < end
        try:
            assert (await source.fetch()).document.epoch == 1
        except PolicyUnavailableError:
            await asyncio.sleep(0.01)


def test_a_start_does_not_wait_for_a_file_that_hangs(file, kept, hanging):
    with pytest.raises(PolicyUnavailableError, match="takes too long"):
        FileSource(file, kept).first()
    kept.store(7, policy(7).encode())
    source = FileSource(file, kept)
    assert [offer.document.epoch for offer in source.first()] == [7]
    assert source.state is State.STALE


HANGS = """
    import asyncio, sys, time
    from dpmesh.errors import PolicyUnavailableError
    from dpmesh.rollout import file_source
    file_source._read, file_source._PATIENCE = (lambda path: time.sleep(3600)), 0.05

    async def main():
        try:
            await file_source.FileSource(sys.argv[1]).fetch()
        except PolicyUnavailableError:
            print("late")

    asyncio.run(main())
"""


def test_a_process_ends_although_a_read_hangs(file):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGS), str(file)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")


@pytest.mark.parametrize("name", ["a/" + "b" * 300, "policy.yaml/below", "link"])
async def test_whatever_the_system_says_of_a_path_the_file_can_not_be_read(tmp_path, file, name):
    (tmp_path / "link").symlink_to("link")
    source = FileSource(tmp_path / name)
    with pytest.raises(PolicyUnavailableError, match="can't be read"):
        source.first()
    with pytest.raises(PolicyUnavailableError, match="can't be read"):
        await source.fetch()
    assert source.state is State.STALE


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
async def test_what_is_no_file_can_not_be_read(file, make):
    file.unlink()
    make(file)
    source = FileSource(file)
    for _ in range(2):
        with pytest.raises(PolicyUnavailableError, match="no regular file|Is a directory"):
            await source.fetch()


async def test_a_file_that_is_too_large_is_an_answer_that_can_not_be_taken(file):
    source = FileSource(file)
    file.write_text("#" * 256_000 + "\n...\n")
    with pytest.raises(ConfigError, match="larger than 256 kB"):
        await source.fetch()
    assert source.state is State.FRESH


async def test_another_loop_may_fetch(file):
    source = FileSource(file)
    found = await asyncio.to_thread(lambda: asyncio.run(source.fetch()))
    assert found.document.epoch == 1
    assert await source.fetch() is None


async def test_a_fetch_that_is_cut_off_does_not_lose_the_policy(file, monkeypatch):
    source, parse, going = FileSource(file), file_source._parse, threading.Event()

    def slow(content, path):
        going.wait(60)
        return parse(content, path)

    monkeypatch.setattr(file_source, "_parse", slow)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await source.fetch()
    going.set()
    assert (await source.fetch()).document.epoch == 1


def test_an_older_file_is_no_policy_to_begin_with(file, kept):
    source = FileSource(file, kept)
    last = take(source, file, policy(5))
    for older in (policy(4), policy(5, "b"), policy(0)):
        file.write_text(older)
        assert source.first() == [replace(last, taken=True)]


@pytest.mark.parametrize("text", [policy(4), policy(5, "b"), policy(0)])
def test_what_another_process_has_taken_is_not_replaced_by_an_older_policy(file, kept, text):
    """Two processes share the folder, but see different files under one name."""
    other = FileSource(file, kept)
    file.write_text(text)
    (older,) = other.first()
    last = take(FileSource(file, kept), file, policy(5))
    with pytest.raises(ConfigError, match="5, which"):
        other.keep(older)
    assert kept.load() == last.content


def test_a_policy_that_says_the_same_in_other_words_may_be_kept(file, kept):
    source = FileSource(file, kept)
    take(source, file, policy(5))
    offer = take(source, file, "# a comment\n" + policy(5))
    assert kept.load() == offer.content


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_reads_although_a_read_of_its_parent_hangs(file, hanging):
    source = FileSource(file)
    source._reading.acquire()
    source.after_fork_in_child()
    assert source._reading.acquire(blocking=False)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_cache_into_which_other_users_may_write_is_refused(tmp_path, file, mode):
    """They could put a policy there as the one that was taken last."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    settings = load({"policy": {"source": str(file), "cache": str(tmp_path / "cache")}}, {})
    with pytest.raises(ConfigError, match="other users may write it"):
        open_source(settings, floor=0, clock=time.time)
    (tmp_path / "cache").chmod(0o770)
    open_source(settings, floor=0, clock=time.time)
