"""Forks: objects that must forget their parent process in a forked child register here.

Objects are held weakly. Hooks run in the order in which their objects registered. A hook that raises keeps no other
from running; Python reports the error as unraisable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary


class ForkAware(Protocol):
    """An object with state that a forked child must not share with its parent."""

    def after_fork_in_child(self) -> None:
        """Forgets what belongs to the parent, without touching it. Other threads may have held any lock."""


class PausedByFork(ForkAware, Protocol):
    """An object that must also stand still while its process forks."""

    def before_fork(self) -> None:
        """Pauses, in the process that is about to fork."""

    def after_fork_in_parent(self) -> None:
        """Goes on, in the process that has forked, even if pausing failed halfway."""


_Object = TypeVar("_Object", bound=ForkAware)


def register(item: ForkAware) -> None:
    """Has an object's `after_fork_in_child` called in every child that is forked from now on."""
    _registered[id(item)] = item


def register_paused(item: PausedByFork) -> None:
    """Has an object paused around every fork, too."""
    _hook_parent()
    _pausable[id(item)] = item
    register(item)


_registered: WeakValueDictionary[int, ForkAware] = WeakValueDictionary()
_pausable: WeakValueDictionary[int, PausedByFork] = WeakValueDictionary()
_paused: list[PausedByFork] = []


def _alive(items: WeakValueDictionary[int, _Object]) -> list[_Object]:
    # Not `values()`, which fails if another thread registers an object meanwhile.
    return [item for each in items.valuerefs() if (item := each()) is not None]


def _before() -> None:
    def pause(item: PausedByFork) -> None:
        try:
            item.before_fork()
        finally:
            _paused.append(item)  # Not earlier: another thread that forks now would let it go on.

    _each(pause, _alive(_pausable))


def _after_in_parent() -> None:
    paused = _paused[::-1]
    _paused.clear()
    _each(lambda item: item.after_fork_in_parent(), paused)


def _after_in_child() -> None:
    _paused.clear()
    _each(lambda item: item.after_fork_in_child(), _alive(_registered))


def _each(step: Callable[[_Object], None], items: Iterable[_Object]) -> None:
    errors = []
    for item in items:
        try:
            step(item)
        except BaseException as error:
            errors.append(error)
    if errors:
        raise BaseExceptionGroup("hooks of a fork failed", errors)


os.register_at_fork(after_in_child=_after_in_child)


@cache
def _hook_parent() -> None:
    # Python calls the hook that was registered last first. Objects that pause import what registers hooks of its own,
    # such as logging, before they register here: so they pause before its locks are taken.
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent)
