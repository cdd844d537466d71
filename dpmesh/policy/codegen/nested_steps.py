"""Steps of messages in messages: single, repeated and in maps, and of the members of oneofs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from dpmesh.noise.draws import Draws
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.codegen.steps import Run, Step
from dpmesh.policy.plan import Pseudonymise


def child(name: str, run: Run, *, when_set: bool) -> Step:
    """A message in a message: always emitted, or only when it was set."""

    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        if when_set and not source.HasField(name):
            return
        into = getattr(target, name)
        into.SetInParent()
        run(getattr(source, name), into, pseudonymise)

    return step


def children(name: str, run: Run, items: int, blank: Message, *, fill: bool) -> Step:
    """A repeated message: cut at `items` (0: as many as there are), and filled up with protected defaults."""

    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        elements = getattr(source, name)
        into = getattr(target, name)
        shown = elements[:items] if items else elements
        for element in shown:
            run(element, into.add(), pseudonymise)
        if fill:
            for _ in range(items - len(shown)):
                run(blank, into.add(), pseudonymise)

    return step


def entries(name: str, run: Run, items: int) -> Step:
    """A map of messages: cut at `items` in order of key (0: as many as there are)."""

    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        held = getattr(source, name)
        into = getattr(target, name)
        for key in sorted(held)[: items or None]:
            run(held[key], into[key], pseudonymise)

    return step


def choice(oneof_name: str, members: Sequence[tuple[str, Run]], draws: Draws, blank: Message) -> Step:
    """A oneof whose choice is randomized: the drawn member leaves.

    A member that was drawn but not set leaves with the protected output of its defaults.
    """
    positions = {name: position for position, (name, _) in enumerate(members)}
    runs = [run for _, run in members]
    nothing, draw = len(runs), draw_function(draws)

    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        actual = positions.get(source.WhichOneof(oneof_name), nothing)
        drawn = draw(actual)
        if drawn != nothing:
            runs[drawn](source if drawn == actual else blank, target, pseudonymise)

    return step


def open_choice(oneof_name: str, members: Sequence[tuple[str, Run]]) -> Step:
    """A oneof whose choice is public: the member that is set leaves, protected."""
    runs = dict(members)

    def step(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        name = source.WhichOneof(oneof_name)
        if name in runs:
            runs[name](source, target, pseudonymise)

    return step
