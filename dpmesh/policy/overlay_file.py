"""Policy files: the message dpmesh.v1.Policy in YAML or JSON."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from dpmesh.errors import ConfigError
from dpmesh.policy.descriptors import is_map
from dpmesh.policy.rulebook import says_nothing
from dpmesh.v1 import policy_pb2

LARGEST_FILE = 16 << 20
"""The largest policy file, in bytes."""

# Keys and list indexes from the top of a policy file.
Keys = tuple[str | int, ...]
# From a path to ":line:column", or to "" where that is not known.
Locate = Callable[[Keys], str]


def load(path: str | Path) -> policy_pb2.Policy:
    """Reads a policy file.

    Args:
        path: A .yaml, .yml or .json file.

    Returns:
        The overlays.

    Raises:
        ConfigError: The file is missing, is empty, is not YAML or JSON, has a key or value that the schema does not
            have, or has an entry that sets nothing. The text names the line and the key.
    """
    return parse_bytes(read_bytes(path), str(path))


def load_for_check(path: str | Path) -> tuple[policy_pb2.Policy, tuple[str, ...]]:
    """Reads a policy file in which entries may set nothing, so that a linter reports them among its other findings.

    Args:
        path: As for `load`.

    Returns:
        The policy without the entries that set nothing, and the names of those.

    Raises:
        ConfigError: As for `load`, but for entries that set nothing.
    """
    policy = policy_pb2.Policy()
    document, locate = _read(read_bytes(path), str(path))
    empty = _Reader(str(path), locate).top(document, policy)
    return policy, tuple(str(keys[-1]) for keys in empty)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a policy file.

    Raises:
        ConfigError: The file can't be read, or is larger than any policy is.
    """
    try:
        with Path(path).open("rb") as file:
            found = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"policy file {path}: can't be read ({error.strerror or 'unknown error'})"
        ) from None
    if len(found) > LARGEST_FILE:
        raise ConfigError(f"policy file {path}: is larger than {LARGEST_FILE >> 20} MiB, which no policy is")
    return found


def parse_bytes(content: bytes, source: str) -> policy_pb2.Policy:
    """Turns the bytes of a policy file into a Policy; errors as for `load`.

    Args:
        content: YAML or JSON in UTF-8.
        source: What to call it in errors.
    """
    document, locate = _read(content, source)
    return parse(document, source, locate)


def parse(document: Any, source: str, locate: Locate = lambda _: "") -> policy_pb2.Policy:
    """Turns a parsed document into a Policy.

    Args:
        document: Nested dicts and lists in protobuf's JSON form.
        source: What to call it in errors.
        locate: Where in the source a path stands.

    Raises:
        ConfigError: It does not fit the schema, or has an entry that sets nothing.
    """
    policy, reader = policy_pb2.Policy(), _Reader(source, locate)
    empty = reader.top(document, policy)
    if empty:
        raise ConfigError("\n".join(reader.mistake(keys, _SETS_NOTHING) for keys in empty))
    return policy


def check(policy: policy_pb2.Policy) -> None:
    """Checks overlays that come as a message.

    Raises:
        ConfigError: An entry sets nothing, or a newer version of dpmesh made the message.
    """
    if len(UnknownFieldSet(policy)):
        raise ConfigError("policy: has a part that this version of dpmesh does not know; upgrade dpmesh")
    for field, entries in policy.ListFields():
        if is_map(field):
            for name in sorted(entries):
                if says_nothing(entries[name]):
                    raise ConfigError(f"policy: {field.name} {name}: {_SETS_NOTHING}")


_SETS_NOTHING = "sets nothing, and an empty rule would count as no rule; say what it should do, or remove it"

# Written as a scalar, though it is a message.
_DURATION = "google.protobuf.Duration"

_EXPECTED = {
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number, 0 or above",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number, 0 or above",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text (in quotes, if it looks like a number, a date or yes and no)",
    FieldDescriptor.CPPTYPE_MESSAGE: 'a time in seconds, such as "90s"',
}


class _Reader:
    """Reads a document into a message; arguments as for `parse`. The first mistake raises an error that says where."""

    def __init__(self, source: str, locate: Locate) -> None:
        self._source = source
        self._locate = locate
        self._empty: list[Keys] = []

    def top(self, document: Any, policy: policy_pb2.Policy) -> list[Keys]:
        """Reads a whole document, and returns where the entries are that set nothing. The policy lacks them."""
        if document is None:
            self._refuse((), "is empty, so it protects nothing; write {} if that is meant")
        if not isinstance(document, dict):
            self._refuse((), "the top level must be a mapping with keys such as 'fields'")
        self._message(document, policy, ())
        return self._empty

    def _message(self, document: Any, message: Message, path: Keys) -> None:
        if not isinstance(document, dict):
            self._refuse(path, "must be a mapping, such as {}")
        fields: dict[str, Any] = {field.json_name: field for field in message.DESCRIPTOR.fields}
        fields |= {field.name: field for field in message.DESCRIPTOR.fields}
        done: dict[str, str] = {}
        for key, value in document.items():
            at = (*path, key)
            field = fields.get(key) if isinstance(key, str) else None
            if field is None:
                self._refuse_key(at, message.DESCRIPTOR)
            if value is None:
                self._refuse(at, _no_value(field))
            # Both spellings of one field, or two members of one oneof: the second would replace the first.
            oneof = field.containing_oneof or field
            other = done.setdefault(oneof.name, key)
            if other != key:
                self._refuse(at, f"stands beside {other}; choose one of the two")
            self._field(value, field, message, at)

    def _field(self, value: Any, field: Any, message: Message, path: Keys) -> None:
        if is_map(field):
            self._entries(value, getattr(message, field.name), path)
        elif field.is_repeated:
            if not isinstance(value, list):
                self._refuse(path, "must be a list, such as [a, b]")
            for index, item in enumerate(value):
                if field.message_type is not None:
                    self._message(item, getattr(message, field.name).add(), (*path, index))
                else:
                    self._scalar([item], field, message, (*path, index))
        elif field.message_type is not None and field.message_type.full_name != _DURATION:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self._message(value, inner, path)
        else:
            self._scalar(value, field, message, path)

    def _entries(self, document: Any, entries: Any, path: Keys) -> None:
        """Reads one section: full names and their rules."""
        if not isinstance(document, dict):
            self._refuse(path, "must be a mapping from full names to rules")
        for name, value in document.items():
            at = (*path, name)
            if not isinstance(name, str):
                self._refuse(at, "must be a full name")
            if value is None:
                self._empty.append(at)
                continue
            try:
                rules = entries[name]
            except ValueError:
                self._refuse(path, "has a name that is not valid Unicode")
            self._message(value, rules, at)
            if says_nothing(rules):
                del entries[name]
                self._empty.append(at)

    def _scalar(self, value: Any, field: Any, message: Message, path: Keys) -> None:
        """Reads one value with protobuf's rules for JSON; a list of one stands for an element."""
        enum = field.enum_type
        inner = value[0] if isinstance(value, list) and field.is_repeated else value
        is_bool = field.cpp_type == FieldDescriptor.CPPTYPE_BOOL
        # protobuf would take a bool for a number, and any number for an enum.
        fits = isinstance(inner, bool) if is_bool else isinstance(inner, (str, int, float))
        fits = fits and (is_bool or not isinstance(inner, bool))
        if enum is not None:
            fits = fits and (inner in enum.values_by_name or inner in enum.values_by_number)
        if fits:
            single = type(message)()
            try:
                json_format.ParseDict({field.json_name: value}, single)
            except (json_format.ParseError, ValueError, OverflowError):
                fits = False
            else:
                message.MergeFrom(single)
        if not fits:
            expected = _EXPECTED.get(field.cpp_type, "another value")
            if enum is not None:
                expected = f"one of {', '.join(enum.values_by_name)}{_close(inner, enum.values_by_name)}"
            self._refuse(path, f"must be {expected}")

    def _refuse_key(self, path: Keys, message: Any) -> NoReturn:
        names = [field.name for field in message.fields]
        known = ", ".join(names) if names else "none"
        self._refuse(path, f"is not known here{_close(path[-1], names)} (known: {known})")

    def _refuse(self, path: Keys, text: str) -> NoReturn:
        raise ConfigError(self.mistake(path, text))

    def mistake(self, path: Keys, text: str) -> str:
        """The text of an error: the source, where in it, and what is wrong."""
        where = " ".join(str(part) if isinstance(part, str) else f"[{part}]" for part in path)
        return f"policy file {self._source}{self._locate(path)}: {where + ': ' if where else ''}{text}"


def _no_value(field: Any) -> str:
    if is_map(field):
        return "has no value; write the overlays below it, or remove it"
    if field.message_type is not None and not field.message_type.fields:
        return f"has no value, and would count as no rule; write `{field.name}: {{}}`, or remove it"
    return "has no value, and would count as no rule; write a value, or remove it"


def _close(word: Any, known: Iterable[str]) -> str:
    """Suggests the nearest known word, if one is near."""
    if not isinstance(word, str):
        return ""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _read(content: bytes, source: str) -> tuple[Any, Locate]:
    """The document in a file of YAML, of which JSON is a part, and where its keys and elements stand."""
    import yaml

    from dpmesh.policy.bounded_yaml import BoundedLoader, BoundsError

    class Loader(BoundedLoader):
        """Refuses a key that is written twice: the second would replace the first without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise ConfigError(
                        f"policy file {source}{_mark(key)}: merge keys (<<) are not allowed; write the rules out"
                    )
                name = key.value if isinstance(key, yaml.ScalarNode) else None
                if name in seen:
                    raise ConfigError(f"policy file {source}{_mark(key)}: written twice: {name}")
                seen.add(name)
            return super().construct_mapping(node, deep=deep)

    try:
        loader = Loader(content.decode())
        root = loader.get_single_node()
        document = None if root is None else loader.construct_document(root)
    except UnicodeDecodeError:
        raise ConfigError(f"policy file {source}: can't be read (not UTF-8)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"policy file {source}{where}: not YAML or JSON") from None
    except BoundsError as error:
        raise ConfigError(f"policy file {source}: {error}") from None
    except ConfigError:
        raise
    except Exception as error:
        # PyYAML's own conversions: a date that does not exist, a number of thousands of digits, '!!int ""'.
        raise ConfigError(f"policy file {source}: not YAML or JSON ({type(error).__name__})") from None
    return document, lambda path: _mark(_node(root, path))


def _node(root: Any, path: Keys) -> Any:
    """The YAML node of a key or element, or the nearest one above it."""
    import yaml

    found, at = root, root
    for part in path:
        if isinstance(at, yaml.MappingNode):
            pair = next(((key, value) for key, value in at.value if key.value == str(part)), None)
            if pair is None:
                break
            found, at = pair
        elif isinstance(at, yaml.SequenceNode) and isinstance(part, int) and part < len(at.value):
            found = at = at.value[part]
        else:
            break
    return found


def _mark(node: Any) -> str:
    return f":{node.start_mark.line + 1}:{node.start_mark.column + 1}" if node is not None else ""
