"""The compiled inside of a plan: steps, each of which writes one field, and the functions that run them.

A protected message is built from nothing, field by field, so what no step writes does not leave: unknown fields,
extensions and suppressed fields need no code to stop them. The caller's message is only read.
"""

from __future__ import annotations

import keyword
import operator
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from dpmesh.errors import ProtectionError
from dpmesh.noise.draws import Draws, joint
from dpmesh.policy.codegen.source import drawing_function, function
from dpmesh.policy.descriptors import F, is_map, is_wrapper, may_extend, scalar
from dpmesh.policy.plan import Build, Pseudonymise

# Of a random id.
_ID_BYTES = 16
# In the names that a transform's text refers to: what tells it from others in the same function.
_MARK = "@"


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """What a field's plan does to each of its values.

    Attributes:
        draws: The randomness that one value takes; None where nothing is drawn.
        text: Python statements from a `value`, a `code` (where something is drawn) and the `alias` function to what
            leaves, `out`.
        global_names: What they refer to, by names that end in "@".
        reads: The statements use the value; otherwise the field is not even read.
    """

    draws: Draws | None
    text: str
    global_names: Mapping[str, Any]
    reads: bool = True

    def marked(self, mark: str) -> tuple[str, dict[str, Any]]:
        """The text, and what it refers to, with names that end in `mark`."""
        return self.text.replace(_MARK, mark), {
            name.replace(_MARK, mark): value for name, value in self.global_names.items()
        }

    def function(self) -> Callable[[Any], Any]:
        """What it does, as a function of the value alone."""
        assert self.draws is not None
        text, global_names = self.marked("")
        pool = self.draws.pool()
        made: Callable[[Any], Any] = drawing_function(
            pool, "transform", "value", "code", text, "out", global_names
        )
        return made


class Run(Protocol):
    """Writes one field, or all fields of a message."""

    def __call__(self, source: Any, target: Any, pseudonymise: Pseudonymise, /) -> None:
        """Reads from one message and writes to the other.

        Args:
            source: The message, or the snapshot of one. It is only read.
            target: The protected message.
            pseudonymise: Maps a unit's canonical bytes to its pseudonym.

        Raises:
            ProtectionError: The source can't be protected.
        """


# Most fields only need a transform between reading and writing: (name, transform) spares them a call of their own.
Step = Run | tuple[str, Transform]


def build(new: type[Message], steps: Sequence[Step], fields: Sequence[str] | None, *, discard: bool) -> Build:
    """Compiles the function that makes a protected message from the snapshot of another one.

    Args:
        new: The message class.
        steps: What writes its fields.
        fields: The snapshot holds the values of these fields, in this order. None: it is a message.
        discard: The steps copy whole messages, whose unknown fields must go.
    """
    first = "target = new()"
    read: Callable[[str], str] = _reading
    if fields is not None:
        values = {name: f"in{number}" for number, name in enumerate(fields)}
        read = values.__getitem__
        if fields:
            first = f"{', '.join(values.values())}, = source\n{first}"
    last = "target.DiscardUnknownFields()" if discard else ""
    made: Build = _compiled("source, alias", steps, first, last, "target", {"new": new}, read)
    return made


def run_all(steps: Sequence[Step]) -> Run:
    """Compiles the function that writes the protected fields of one message to another."""
    run: Run = _compiled("source, target, alias", steps, "", "", "None", {}, _reading)
    return run


def _compiled(
    arguments: str,
    steps: Sequence[Step],
    first: str,
    last: str,
    result: str,
    global_names: dict[str, Any],
    read: Callable[[str], str],
) -> Any:
    """Compiles all steps of one message type to one function that takes all its randomness from one pool.

    It is one function because calls are dear: between two RPCs the processor's caches fill with other things, and then
    each function and object that is touched costs more than the arithmetic on a field.
    """
    drawn = {
        number: step[1].draws
        for number, step in enumerate(steps)
        if isinstance(step, tuple) and step[1].draws is not None
    }
    lines = [first]
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            name, transform = step
            text, names = transform.marked(str(number))
            lines += [f"value = {read(name)}"] if transform.reads else []
            lines += [f"code = code{number}"] if number in drawn else []
            lines += [text, _writing(name)]
            global_names.update(names)
        else:
            global_names[f"step{number}"] = step
            lines.append(f"step{number}(source, target, alias)")
    body = "\n".join([*lines, last])
    if not drawn:
        return function("protect", arguments, body, result, global_names)
    codes = "".join(f"code{number}, " for number in drawn)
    return drawing_function(
        joint(list(drawn.values())), "protect", arguments, codes, body, result, global_names
    )


def _reading(name: str) -> str:
    return f"source.{name}" if _is_identifier(name) else f"getattr(source, {name!r})"


def _writing(name: str) -> str:
    return f"target.{name} = out" if _is_identifier(name) else f"setattr(target, {name!r}, out)"


def _is_identifier(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


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


def single(field: FieldDescriptor, transform: Transform) -> Step:
    """Applies a transform to a field that is always emitted, whether it was set or not."""
    name = field.name
    if is_wrapper(field):
        protect = transform.function()

        def wrapped(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            box = getattr(target, name)
            box.value = protect(getattr(source, name).value)
            box.SetInParent()

        return wrapped

    return name, transform


def repeated(field: FieldDescriptor, transform: Transform, items: int, *, fill: bool = True) -> Step:
    """Applies a transform to each element: cut at `items`, and filled up with defaults."""
    name = field.name
    protect = transform.function()
    filler = "" if scalar(field).type == F.TYPE_STRING else 0
    if is_wrapper(field):

        def wrapped(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            values = [box.value for box in getattr(source, name)[:items]]
            if fill:
                values += [filler] * (items - len(values))
            into = getattr(target, name)
            for value in values:
                into.add(value=protect(value))

        return wrapped

    def plain(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
        values = getattr(source, name)[:items]
        if fill:
            values += [filler] * (items - len(values))
        getattr(target, name).extend([protect(value) for value in values])

    return plain


def require_set(field: FieldDescriptor) -> Step:
    """Refuses a message that lacks a field with an aggregate: no default may stand in for it."""
    name, full_name = field.name, field.full_name

    def step(source: Any, _target: Any, _pseudonymise: Pseudonymise) -> None:
        if not source.HasField(name):
            raise ProtectionError("MISSING_AGGREGATE", full_name, "is absent, and holds an aggregate: set it")

    return step


def require_items(field: FieldDescriptor, items: int) -> Step:
    """Refuses a message with fewer elements than it shows, where they hold aggregates."""
    name, full_name = field.name, field.full_name
    text = f"has fewer elements than its max_items of {items}, and they hold aggregates: fill it up"

    def step(source: Any, _target: Any, _pseudonymise: Pseudonymise) -> None:
        if len(getattr(source, name)) < items:
            raise ProtectionError("MISSING_AGGREGATE", full_name, text)

    return step


def emptied(field: FieldDescriptor) -> Run:
    """A suppressed member of a oneof whose choice is randomized: it shows as set, and holds nothing."""
    name = field.name
    if field.message_type is not None:
        return lambda _source, target, _pseudonymise: getattr(target, name).SetInParent()
    default = field.default_value
    return lambda _source, target, _pseudonymise: setattr(target, name, default)


def random_id(field: FieldDescriptor) -> Step:
    """Writes 128 bits from the operating system, whatever the source holds."""
    draw: Callable[[int], str | bytes] = (
        secrets.token_hex if field.type == F.TYPE_STRING else secrets.token_bytes
    )
    return field.name, Transform(None, f"out = draw@({_ID_BYTES})", {"draw@": draw}, reads=False)


def passed(field: FieldDescriptor) -> Step:
    """Copies a field as it is, but for extensions."""
    copy, name = _copied(field), field.name
    if isinstance(copy, tuple) or field.message_type is None or not may_extend(field.message_type):
        return copy

    def without_extensions(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        copy(source, target, pseudonymise)
        drop_extensions(target, only=name)

    return without_extensions


def drop_extensions(message: Any, only: str = "") -> None:
    """Clears the extensions in a message and in all messages within; or only those within one field."""
    for field, value in message.ListFields():
        if only and field.name != only:
            continue
        if field.is_extension:
            message.ClearExtension(field)
        elif is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None:
                for inner in value.values():
                    drop_extensions(inner)
        elif field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                drop_extensions(inner)


def _copied(field: FieldDescriptor) -> Step:
    """Copies a field with all that is in it."""
    name = field.name
    if field.is_repeated:
        return lambda source, target, _pseudonymise: getattr(target, name).MergeFrom(getattr(source, name))
    if field.message_type is not None:

        def message(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            if source.HasField(name):
                getattr(target, name).CopyFrom(getattr(source, name))

        return message
    if field.has_presence:

        def optional(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            if source.HasField(name):
                setattr(target, name, getattr(source, name))

        return optional
    return name, Transform(None, "out = value", {})
