"""Functions: the steps of one message type as one generated function."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from dpmesh.noise.draws import joint
from dpmesh.policy.codegen.source import drawing_function, function
from dpmesh.policy.codegen.steps.step import Run, Step
from dpmesh.policy.plan import Build


def build(new: type[Message], steps: Sequence[Step], fields: Sequence[str] | None, *, discard: bool) -> Build:
    """What makes a protected message from the snapshot of another one.

    Args:
        new: The message class.
        steps: What writes its fields.
        fields: The snapshot holds the values of these fields, in this order. None: it is a message.
        discard: The steps copy whole messages, whose unknown fields must go.
    """
    first = "target = new()"
    read: Callable[[str], str] = _attribute
    if fields is not None:
        values = {name: f"in{number}" for number, name in enumerate(fields)}
        read = values.__getitem__
        if fields:
            first = f"{', '.join(values.values())}, = source\n{first}"
    last = "target.DiscardUnknownFields()" if discard else ""
    made: Build = _compiled("source, alias", steps, first, last, "target", {"new": new}, read)
    return made


def run_all(steps: Sequence[Step]) -> Run:
    """What writes the protected fields of one message to another."""
    run: Run = _compiled("source, target, alias", steps, "", "", "None", {}, _attribute)
    return run


def _compiled(
    arguments: str,
    steps: Sequence[Step],
    first: str,
    last: str,
    result: str,
    known: dict[str, Any],
    read: Callable[[str], str],
) -> Any:
    """All steps of one message type, as one function that takes all its randomness from one pool.

    Every message goes through it: between two RPCs, when the processor's caches hold other things, each function and
    each object that it touches costs more than what is done there.
    """
    drawn = {
        number: step[1].codes
        for number, step in enumerate(steps)
        if isinstance(step, tuple) and step[1].codes is not None
    }
    lines = [first]
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            name, transform = step
            text, names = transform.marked(str(number))
            lines += [f"value = {read(name)}"] if transform.reads else []
            lines += [f"code = code{number}"] if number in drawn else []
            lines += [text, _assignment(name)]
            known.update(names)
        else:
            known[f"step{number}"] = step
            lines.append(f"step{number}(source, target, alias)")
    body = "\n".join([*lines, last])
    if not drawn:
        return function("protect", arguments, body, result, known)
    codes = "".join(f"code{number}, " for number in drawn)
    return drawing_function(joint(list(drawn.values())), "protect", arguments, codes, body, result, known)


def _attribute(name: str) -> str:
    """What reads a field of the source."""
    return f"source.{name}" if _plain(name) else f"getattr(source, {name!r})"


def _assignment(name: str) -> str:
    """What writes a field of the target."""
    return f"target.{name} = out" if _plain(name) else f"setattr(target, {name!r}, out)"


def _plain(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)
