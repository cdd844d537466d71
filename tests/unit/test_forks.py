"""Forks: every registered object forgets its parent, in order, whatever the others do."""

import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

from dpmesh import forks
from tests.support import children


class Noted:
    def __init__(self, name, steps):
        self.name, self.steps = name, steps

    def after_fork_in_child(self):
        self.steps.append((self.name, "child"))


class Pausing(Noted):
    def before_fork(self):
        self.steps.append((self.name, "before"))

    def after_fork_in_parent(self):
        self.steps.append((self.name, "parent"))


class Broken(Pausing):
    def before_fork(self):
        raise ValueError("before")

    def after_fork_in_child(self):
        raise ValueError("child")


def test_objects_are_told_in_the_child_in_their_order():
    steps = []
    kept = [Noted(name, steps) for name in "abc"]
    for each in kept:
        forks.register(each)
    assert children.run(lambda: steps) == [("a", "child"), ("b", "child"), ("c", "child")]
    assert steps == []


def test_objects_that_pause_go_on_on_both_sides():
    steps = []
    kept = [Pausing(name, steps) for name in "ab"]
    for each in kept:
        forks.register_paused(each)
    assert children.run(lambda: steps[2:]) == [("a", "child"), ("b", "child")]
    assert steps == [("a", "before"), ("b", "before"), ("b", "parent"), ("a", "parent")]
    assert children.run(lambda: len(forks._paused)) == len(forks._paused) == 0


def test_an_object_that_registers_twice_is_told_once():
    steps = []
    each = Pausing("a", steps)
    forks.register(each)
    forks.register_paused(each)
    forks.register_paused(each)
    assert children.run(lambda: steps) == [("a", "before"), ("a", "child")]


def test_threads_that_fork_at_once_pause_one_after_the_other():
    class Locked(Noted):
        def __init__(self):
            super().__init__("a", [])
            self.lock = threading.Lock()

        def before_fork(self):
            assert self.lock.acquire(timeout=20)
            time.sleep(0.01)  # the other thread begins to fork

        def after_fork_in_parent(self):
            self.lock.release()

    each = Locked()
    forks.register_paused(each)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        assert (
            list(threads.map(lambda _: children.run(lambda: each.steps), range(6))) == [[("a", "child")]] * 6
        )
    assert not each.lock.locked()
    assert time.monotonic() - began < 20


def test_a_hook_that_raises_keeps_no_other_from_running(monkeypatch):
    errors = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: errors.append(unraisable.exc_value))
    steps = []
    kept = [Broken("x", steps), Pausing("a", steps)]
    for each in kept:
        forks.register_paused(each)

    def seen():
        return steps, [str(each) for error in errors for each in error.exceptions]

    assert children.run(seen) == ([("a", "before"), ("a", "child")], ["before", "child"])
    # What paused only halfway goes on, too: it may hold a lock by then.
    assert steps == [("a", "before"), ("a", "parent"), ("x", "parent")]


def test_objects_are_not_kept_alive():
    each = Pausing("a", [])
    forks.register_paused(each)
    gone = weakref.ref(each)
    del each
    gc.collect()
    assert gone() is None
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def test_objects_that_compare_equal_are_both_told():
    class Equal(Noted):
        def __eq__(self, other):
            return True

        __hash__ = None

    steps = []
    kept = [Equal("a", steps), Equal("b", steps)]
    for each in kept:
        forks.register(each)
    assert children.run(lambda: steps) == [("a", "child"), ("b", "child")]
