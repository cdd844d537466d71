"""Snapshots: what a message holds at one moment, read in one step that no other thread can interrupt."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import Message

from dpmesh.policy.codegen.steps.step import Step


def flat_fields(steps: Iterable[Step]) -> list[str] | None:
    """The names of the fields that steps read, each once, or None if a step needs more than the values of fields."""
    names: dict[str, None] = {}
    for step in steps:
        if not isinstance(step, tuple):
            return None
        name, transform = step
        if transform.reads:
            names[name] = None
    return list(names)


def reader(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What reads several fields of a message at once.

    It is one call into C, during which no other thread runs Python. So all values are of one moment, whatever another
    thread does to the message. No other field is touched, however large it is.
    """
    if len(names) > 1:
        return operator.attrgetter(*names)
    if not names:
        return lambda _message: ()
    read = operator.attrgetter(names[0])
    return lambda message: (read(message),)


def copier(new: type[Message]) -> Callable[[Any], Message]:
    """What copies a whole message of a class, with all that is in it.

    It is one call into C, during which no other thread runs Python. It takes time in proportion to the message's size,
    suppressed fields included.
    """
    return new.__deepcopy__
