"""Forked children: to run something as another process, as an ordinary user, or until it is killed."""

import gc
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

NOBODY = 65534


def _freeze() -> None:
    gc.freeze()
    gc.enable()


# What is garbage at a fork is the parent's to collect. The last of gRPC's objects, if it were collected in a child,
# would wait there for ever for a thread that only the parent has. The parent must not be unfrozen: see tests/conftest.py.
os.register_at_fork(before=gc.disable, after_in_parent=gc.enable, after_in_child=_freeze)


def start(function: Callable[[], Any]) -> tuple[int, int]:
    """Forks a child that runs the function; returns its pid and the pipe that brings the pickled result."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(reader)
        try:
            result = (True, function())
        except BaseException:
            result = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)


def finish(child: tuple[int, int]) -> Any:
    """Waits for a child, and returns what its function returned."""
    pid, reader = child
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    ok, result = pickle.loads(data)
    assert ok, result
    return result


def run(function: Callable[[], Any]) -> Any:
    """Runs a function in a forked child, and returns what it returned."""
    return finish(start(function))


def as_ordinary_user(function: Callable[[], Any]) -> Any:
    """Runs a function in a child that file permissions bind, also where the tests run as root."""

    def demoted() -> Any:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return function()

    return run(demoted)
