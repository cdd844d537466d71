"""Private files: written whole or not at all, for their owner only."""

import os
import threading

import pytest

from dpmesh import files
from dpmesh.files import NotPrivateError
from tests.support import children


def mode(path):
    return path.stat().st_mode & 0o777


def names(folder):
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
def order(monkeypatch):
    """What is synchronized, linked and renamed, in order."""
    steps = []
    fsync = os.fsync

    def sync(file):
        steps.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{file}")).split(".")[-1]))
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync)
    for name in ("replace", "rename", "link"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, original=original: (steps.append((name,)), original(*args))[1]
        )
    return steps


def test_a_file_is_private_and_replaced(tmp_path):
    path = tmp_path / "key"
    files.write(path, b"old")
    path.chmod(0o644)
    files.write(path, b"new")
    assert (path.read_bytes(), mode(path), names(tmp_path)) == (b"new", 0o600, ["key"])


def test_a_file_is_durable_before_it_replaces_another_and_its_folder_afterwards(tmp_path, order):
    files.write(tmp_path / "key", b"data")
    assert order == [("fsync", "new"), ("replace",), ("fsync", tmp_path.name)]


def test_several_files_are_durable_before_the_first_replaces_another(tmp_path, order):
    files.write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [step[0] for step in order] == ["fsync", "fsync", "replace", "replace", "fsync"]
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"1", b"2")


def test_when_one_of_several_files_cannot_be_written_none_is(tmp_path):
    files.write(tmp_path / "a", b"old")
    with pytest.raises(OSError):
        files.write_all({tmp_path / "a": b"new", tmp_path / "missing" / "b": b"2"})
    assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"old", ["a"])


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "key"
    files.write(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, b"new")
    with pytest.raises(OSError, match="No space"):
        files.create(tmp_path / "other", b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["key"])


def test_writers_with_equal_ids_leave_one_file_whole(tmp_path, monkeypatch):
    """Containers that share a folder number their processes and threads alike."""
    path = tmp_path / "key"
    fsync = os.fsync

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        files.write(path, b"second")
        files.create(tmp_path / "other", b"second")
        fsync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write(path, b"first")
    assert (path.read_bytes(), names(tmp_path)) == (b"first", ["key", "other"])
    monkeypatch.setattr(os, "fsync", meanwhile)
    (tmp_path / "other").unlink()
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "other", b"first")
    assert (path.read_bytes(), names(tmp_path)) == (b"second", ["key", "other"])


def test_threads_that_write_one_file_leave_one_of_them_whole(tmp_path):
    path = tmp_path / "key"
    contents = [bytes([number]) * 100_000 for number in range(8)]

    def work(content):
        for _ in range(5):
            files.write(path, content)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["key"]


def test_a_new_file_never_replaces_another(tmp_path, order):
    path = tmp_path / "key.pub"
    files.create(path, b"first", mode=0o644)
    assert order == [("fsync", "new"), ("link",), ("fsync", tmp_path.name)]
    with pytest.raises(FileExistsError):
        files.create(path, b"second")
    assert (path.read_bytes(), mode(path), names(tmp_path)) == (b"first", 0o644, ["key.pub"])


def test_a_file_that_the_caller_fills_replaces_another_at_the_end(tmp_path, order):
    path = tmp_path / "export"
    path.write_bytes(b"old")
    with files.replacing(path) as new:
        assert mode(new) == 0o600
        new.write_bytes(b"new")
        order.clear()
        assert path.read_bytes() == b"old"
    assert order == [("fsync", "new"), ("replace",), ("fsync", tmp_path.name)]
    assert (path.read_bytes(), mode(path), names(tmp_path)) == (b"new", 0o600, ["export"])


def test_a_file_stays_as_it_was_when_the_caller_fails(tmp_path):
    path = tmp_path / "export"
    path.write_bytes(b"old")
    with pytest.raises(ValueError), files.replacing(path) as new:
        new.write_bytes(b"half")
        raise ValueError
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["export"])


@pytest.mark.parametrize("bits", [0o640, 0o620, 0o604, 0o610, 0o601])
def test_a_file_that_others_may_use_is_not_read(tmp_path, bits):
    path = tmp_path / "key"
    files.write(path, b"data")
    path.chmod(bits)
    with pytest.raises(NotPrivateError):
        files.read_private(path)


def test_only_a_plain_file_is_read_as_private(tmp_path):
    path, link, pipe, folder = (tmp_path / name for name in ("key", "link", "pipe", "folder"))
    files.write(path, b"data")
    link.symlink_to(path)
    os.mkfifo(pipe, 0o600)
    folder.mkdir(0o700)
    assert files.read_private(path) == b"data"
    with pytest.raises(OSError):
        files.read_private(link)
    descriptors = os.listdir("/proc/self/fd")
    for other in (pipe, folder):
        with pytest.raises((NotPrivateError, IsADirectoryError)):
            files.read_private(other)
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    with pytest.raises(FileNotFoundError):
        files.read_private(tmp_path / "missing")


def test_a_locked_folder_is_made_private_and_synchronized(tmp_path, order):
    folder = tmp_path / "keys"
    with files.locked_folder(folder):
        assert (mode(folder), order) == (0o700, [])
    assert order == [("fsync", "keys")]


def test_a_locked_folder_keeps_processes_apart(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def add():
        for _ in range(50):
            with files.locked_folder(tmp_path):
                counter.write_text(str(int(counter.read_text()) + 1))

    started = [children.start(add) for _ in range(4)]
    for each in started:
        children.finish(each)
    assert counter.read_text() == "200"


def test_a_lock_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    """Its holder may have been stopped, and a start or an end that waits for it would hang."""
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.05)
    with files.locked_folder(tmp_path), pytest.raises(TimeoutError, match="another process"):  # noqa: SIM117
        with files.locked_folder(tmp_path):
            pass
    with files.locked_folder(tmp_path):
        pass


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_umask_opens_no_folder_and_hides_no_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        with files.locked_folder(tmp_path / "a" / "b" / "c"):
            files.write(tmp_path / "a" / "private", b"")
            files.write(tmp_path / "a" / "public", b"", mode=0o644)
    finally:
        os.umask(before)
    assert {mode(tmp_path / each) for each in ("a", "a/b", "a/b/c")} == {0o700}
    assert (mode(tmp_path / "a/private"), mode(tmp_path / "a/public")) == (0o600, 0o644)
