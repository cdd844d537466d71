"""Overlay paths: names of overlays that begin with a field and lead into the messages in it.

`google.type.Money.units` is the full name of a field: its rule holds for every Money. `acme.Order.price.units` begins
with the full name of a field and goes on with the name of a field of its message type: its rule holds for the Money in
that place alone. No name can mean both, because protobuf lets no two elements have one full name, and a field holds no
named elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh.errors import ConfigError
from dpmesh.policy.descriptors import DEEPEST, inside_of, is_map_entry
from dpmesh.v1 import policy_pb2

# What is left of the paths that lead into a message, each with the name of its overlay, by section. What is left is
# "" for a rule of the message itself.
Ahead = Mapping[tuple[str, str], str]

# The sections of a policy file in which a path can stand.
_SECTIONS = ("fields", "messages", "oneofs")
# How much of a name that is too long errors show, in characters.
_SHOWN = 80


def by_beginning(overlay: policy_pb2.Policy) -> dict[str, dict[tuple[str, str], str]]:
    """For each name that can be the field at which a path begins: what is left of the path.

    Args:
        overlay: The policy. It can't tell which of its names are paths, so this splits them at every dot.

    Raises:
        ConfigError: A name has so many parts that no message is as deep.
    """
    beginnings: dict[str, dict[tuple[str, str], str]] = {}
    for section in _SECTIONS:
        for name in getattr(overlay, section):
            if name.count(".") >= DEEPEST:
                shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
                text = f"policy: {section} has a name with more than {DEEPEST} parts, {shown}"
                raise ConfigError(f"{text}; protobuf's parsers refuse messages as deep, so shorten it")
            for beginning in prefixes(name):
                rest = name[len(beginning) + 1 :]
                beginnings.setdefault(beginning, {})[section, rest] = name
            if section == "messages":
                beginnings.setdefault(name, {})[section, ""] = name
    return beginnings


def prefixes(name: str) -> Iterator[str]:
    """What stands before each dot of a name, the shortest first."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def entered(ahead: Ahead) -> dict[str, dict[tuple[str, str], str]]:
    """For each field through which paths go: what is left of them behind it."""
    inside: dict[str, dict[tuple[str, str], str]] = {}
    for (section, rest), name in ahead.items():
        head, _, tail = rest.partition(".")
        if tail or section == "messages":
            inside.setdefault(head, {})[section, tail] = name
    return inside


def beginning_of(name: str, pool: DescriptorPool) -> FieldDescriptor | None:
    """The field at which a path begins: the shortest beginning of the name that is a field, or the whole name."""
    for beginning in (*prefixes(name), name):
        try:
            return pool.FindFieldByName(beginning)
        except KeyError:
            continue
    return None


def message_at(path: str, pool: DescriptorPool) -> Descriptor | None:
    """The message type to which a path leads, if each of its fields leads on.

    Args:
        path: The full name of a field that holds messages, and then, if any, names of fields in these.
        pool: Where to look.
    """
    field = beginning_of(path, pool)
    if field is None or field.is_extension or field.containing_type is None:
        return None
    if is_map_entry(field.containing_type):
        return None
    message = inside_of(field)
    for part in path[len(field.full_name) + 1 :].split(".") if path != field.full_name else ():
        inner = None if message is None else message.fields_by_name.get(part)
        message = None if inner is None else inside_of(inner)
    return message


def leads_to_element(section: str, name: str, pool: DescriptorPool) -> bool:
    """Whether a name is a path that leads from a field through the messages in it to an element.

    Args:
        section: The section of the policy file in which the name stands.
        name: A path, or any other name.
        pool: Where to look.
    """
    if section == "messages":
        return message_at(name, pool) is not None
    above, _, last = name.rpartition(".")
    message = message_at(above, pool)
    if message is None:
        return False
    return last in (message.fields_by_name if section == "fields" else message.oneofs_by_name)
