"""A small disk that can be full, with the operating system's own ENOSPC.

As root it is a tmpfs, mounted by a helper process that unmounts it in the end, also when the test process dies; every
process sees it, also PostgreSQL's under another user. Without privileges no process can mount what another one sees:
`small_disk` then skips the test. `run` needs none where user namespaces are allowed: it runs a function in a child that
has the disk to itself. RLIMIT_FSIZE is no stand-in for either: it gives EFBIG, which SQLite takes for an I/O error and
not for a full disk.

A tmpfs keeps nothing over a crash of the machine and its fsync does nothing: it is for being full only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import children

BALLAST = ".ballast"

# Standard input ends when the test is done with the disk, or when its process has died. A process that still has a
# file open there keeps the memory until it ends, but no longer the mount point.
HELPER = r"""
import os, select, subprocess, sys

parent, size, folder = sys.argv[1:]
done = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=1777", "dpmesh-test", folder], capture_output=True, text=True)
print((done.stderr.strip() or "refused") if done.returncode else "mounted", flush=True)
while os.getppid() == int(parent) and not select.select([0], [], [], 0.5)[0]:
    pass
if done.returncode == 0:
    subprocess.run(["umount", "-l", folder])
os.rmdir(folder)
"""


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """The folder of an empty disk of this size, which every user reaches and may write to (sticky, as /tmp).

    A PostgreSQL data directory takes about 30 MB of it. The disk is gone in the end, with all that is on it.
    """
    folder = Path(tempfile.mkdtemp(prefix="disk-", dir=_base()))
    folder.chmod(0o755)
    helper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HELPER, str(os.getpid()), str(megabytes), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert helper.stdout is not None
    try:
        said = helper.stdout.readline().strip()
        if said != "mounted":
            pytest.skip(f"no small disk: mounting needs root ({said or 'the helper died'})")
        yield folder
    finally:
        helper.communicate(timeout=60)


def run(megabytes: int, function: Callable[[Path], Any]) -> Any:
    """Runs a function in a forked child on a disk that only the child sees; returns what it returned.

    It needs no privileges, but a kernel that allows user namespaces; else the test is skipped.
    """

    def on_disk() -> Any:
        try:
            folder = _private_disk(megabytes)
        except OSError as error:
            return "skip", str(error)
        return "done", function(folder)

    state, result = children.run(on_disk)
    if state == "skip":
        pytest.skip(f"no small disk: {result}")
    return result


def fill(folder: Path, *, leave: int = 0) -> None:
    """Takes all the room on a folder's disk, or all but some bytes, which are then rounded to whole blocks."""
    (folder / BALLAST).touch()
    with open(folder / BALLAST, "ab", buffering=0) as file:
        step = 1 << 20
        while step:
            try:
                file.write(bytes(step))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
        if leave:
            file.truncate(max(0, file.tell() - leave))


def free(folder: Path) -> None:
    """Gives back the room that `fill` has taken."""
    (folder / BALLAST).unlink(missing_ok=True)


def _base() -> Path:
    """Where other users reach a folder."""
    base = Path(tempfile.gettempdir())
    reachable = all(part.stat().st_mode & 0o001 for part in (base.resolve(), *base.resolve().parents))
    return base if reachable else Path("/tmp")


def _private_disk(megabytes: int) -> Path:
    """Mounts a disk in a mount namespace of this process's own."""
    new_namespace, new_users, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(new_namespace | (new_users if user else 0)))
    if user:
        # A process may only give its own number, and its group's when it can't change groups any more.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _check(libc.mount(b"none", b"/", None, private | recursive, None))
    # Mounted over an existing folder: nothing is left of it when the process has ended.
    folder = Path("/mnt") if Path("/mnt").is_dir() else Path("/tmp")
    options = f"size={megabytes}m,mode=1777".encode()
    _check(libc.mount(b"dpmesh-test", os.fsencode(folder), b"tmpfs", 0, options))
    return folder


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
