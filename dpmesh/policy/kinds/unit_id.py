"""Unit ids: how the id of the device or person that a message is about is read, and which spellings are equal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.errors import ProtectionError
from dpmesh.policy.descriptors import INTEGER_RANGES, F

# From a message to its unit's id.
Read = Callable[[Any], bytes]
# From what the field of a unit's id holds to the bytes that stand for the unit in ledgers and pseudonyms.
Canonical = Callable[[Any], bytes]


def normalization(*, nfc: bool, fold: bool, strip: bool) -> Callable[[str], str]:
    """What makes spellings of an id equal.

    Case folding can undo a normalization form, and some letters fold only once they are decomposed, so with both the
    text is decomposed, folded and composed (Unicode 16, section 3.13, D145).

    Args:
        nfc: Unicode's canonical composition.
        fold: Full case folding.
        strip: White space, control and format characters at both ends.
    """

    def normalized(text: str) -> str:
        if strip:
            text = _stripped(text)
        if fold:
            text = (unicodedata.normalize("NFD", text) if nfc else text).casefold()
        return unicodedata.normalize("NFC", text) if nfc else text

    return normalized


def _stripped(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_blank(text[start]):
        start += 1
    while start < end and _is_blank(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def canonical_form(field: FieldDescriptor, normalize: Callable[[str], str] | None = None) -> Canonical:
    """Maps a unit's id to canonical bytes: text in UTF-8, bytes as they are, integers in decimal.

    So one device has one budget, whether a message spells its id "42" or 42. An id that is empty (or 0, where the
    field can't tell 0 from absent) is missing, and so is a declared default.

    Args:
        field: The field that holds the id.
        normalize: What makes spellings of an id equal, if anything does.
    """
    missing, presence = _missing(field), field.has_presence
    if field.type in INTEGER_RANGES:

        def integer(value: int) -> bytes:
            if not (value or presence):
                raise missing()
            return b"%d" % value

        return integer
    if normalize is not None:

        def normal(value: str | bytes) -> bytes:
            if not isinstance(value, str):
                text = "the privacy unit's id is not UTF-8, so it can't be normalized"
                raise ProtectionError("WRONG_TYPE", field.full_name, text)
            found = normalize(value)
            if not found:
                raise missing()
            return found.encode()

        return normal
    if field.type == F.TYPE_STRING:

        def text(value: str | bytes) -> bytes:
            if not value:
                raise missing()
            # Text that came over the wire and is no UTF-8 reads as bytes.
            return value.encode() if isinstance(value, str) else value

        return text

    def raw(value: bytes) -> bytes:
        if not value:
            raise missing()
        return value

    return raw


def reader(field: FieldDescriptor, canonical: Canonical) -> Read:
    """Reads a unit's id from its message, as canonical bytes."""
    name = field.name
    if not field.has_presence:
        return lambda message: canonical(getattr(message, name))
    missing = _missing(field)

    def present(message: Any) -> bytes:
        if not message.HasField(name):
            raise missing()
        return canonical(getattr(message, name))

    return present


def _missing(field: FieldDescriptor) -> Callable[[], ProtectionError]:
    name = field.full_name
    return lambda: ProtectionError("MISSING_UNIT", name, "the privacy unit's id is missing")
