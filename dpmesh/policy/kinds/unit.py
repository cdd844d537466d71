"""Unit: the id of the device or person that a message is about, and how it leaves."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.errors import ProtectionError
from dpmesh.policy.codegen.source import function
from dpmesh.policy.codegen.steps import Step, Transform, passed
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.descriptors import INTEGER_RANGES, F, oneof_of, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds import epochs, ids
from dpmesh.policy.kinds.kind import Description, FieldKind, FieldSite
from dpmesh.policy.kinds.words import duration
from dpmesh.policy.plan import FieldPlan, Pseudonymise
from dpmesh.policy.sizes import of_values, public
from dpmesh.v1 import privacy_pb2 as pb


@dataclass(frozen=True, slots=True)
class UnitPayload:
    """How a unit's id leaves, and how it is read.

    Attributes:
        form: A Unit.Form.
        epoch: How long a pseudonym lasts, in seconds.
        normalize: The names of what makes spellings equal.
    """

    form: int
    epoch: float
    normalize: tuple[str, ...]


class Unit(FieldKind):
    """Names the unit that pays for its message's local values."""

    name = "unit"
    protects = False
    is_unit = True

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: pb.Unit) -> None:
        field = site.field
        if field.is_repeated or not ids.fits(field):
            text = f"unit does not fit {type_name(field)}"
            site.error("kind-type", text, "string, bytes or integer")
            return
        if oneof_of(field) is not None:
            site.error("kind-type", "a unit can't be one of a oneof", "move it out")
            return
        super().add(fragment, site, rules)
        canonical = canonical_form(field, _normalize(site, rules))
        if not field.has_presence:
            fragment.plain_unit = (field.name, canonical)
        fragment.unit = read = reader(field, canonical)
        if rules.form == pb.Unit.SUPPRESSED:
            _suppress(fragment, site, read, canonical)
            return
        try:
            fragment.add_step(_step(site, rules, read, canonical))
        except BadRuleError as bad:
            site.bad_rule(bad)
        raw = rules.form == pb.Unit.RAW
        fragment.size += public(field, site.path) if raw else of_values(field, ids.encoded_ends(field))
        fragment.shows_presence.append(
            f"{field.full_name} leaves" + (" as it is" if rules.form else " as a pseudonym")
        )

    @override
    def plan(self, site: FieldSite, rules: pb.Unit) -> FieldPlan:
        names = (pb.Unit.Normalization.Name(each) for each in rules.normalize if each != pb.Unit.AS_IS)
        payload = UnitPayload(rules.form, epochs.seconds(rules), tuple(names))
        return FieldPlan(site.path, site.field.full_name, self, site.origin, payload=payload)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        words = f"pseudonym per {duration(plan.payload.epoch)}"
        if plan.payload.form != pb.Unit.PSEUDONYM:
            words = "as it is" if plan.payload.form == pb.Unit.RAW else "nothing"
        names = " ".join(plan.payload.normalize)
        return Description(words + (f", charged by {names}" if names else ""))

    @override
    def pseudonym_epoch(self, plan: FieldPlan) -> float | None:
        return float(plan.payload.epoch) if plan.payload.form == pb.Unit.PSEUDONYM else None


KIND = Unit()


def _suppress(fragment: Fragment, site: FieldSite, read: Read, canonical: Canonical) -> None:
    if site.field.is_required:
        text = "is required, so its message can't be sent without it"
        site.error("required", text, "use another form, or make it optional")
    if not site.owned:
        # Where a message of an outer unit is filled in, there is no id; those that are there are read for the bill.
        fragment.add_step(_required(site.field, read, canonical))


def _step(site: FieldSite, rules: pb.Unit, read: Read, canonical: Canonical) -> Step:
    field = site.field
    if rules.form == pb.Unit.RAW:
        site.warn("unit-raw", "the unit's id leaves as it is", "form: PSEUDONYM hides it")
        return passed(field)
    epoch = epochs.checked_seconds(rules)
    if ids.is_short(field):
        site.warn("unit-collision", "32-bit pseudonyms of different units collide", "use a string or int64")
    return _pseudonym(field, read, canonical, epoch)


def _normalize(site: FieldSite, rules: pb.Unit) -> Callable[[str], str] | None:
    """What makes spellings of an id equal, or None if each is a unit of its own."""
    chosen = set(rules.normalize)
    if not chosen:
        return None
    if site.field.type != F.TYPE_STRING:
        text = f"normalize is for strings, and this is {type_name(site.field)}"
        site.error("unit-normalize", text, "remove it")
        return None
    if pb.Unit.AS_IS in chosen:
        if len(chosen) > 1:
            text = "normalize has AS_IS, and something else"
            site.error("unit-normalize", text, "choose one of the two")
        return None
    return normalization(
        nfc=pb.Unit.NFC in chosen, fold=pb.Unit.CASE_FOLD in chosen, strip=pb.Unit.STRIP in chosen
    )


def _required(field: FieldDescriptor, read: Read, canonical: Canonical) -> Step:
    """Refuses a message without the unit's id, which does not leave."""
    if not field.has_presence:
        text = f"canonical@(value)\nout = {field.default_value!r}"
        return field.name, Transform(None, text, {"canonical@": canonical})

    def step(source: Any, _target: Any, _pseudonymise: Pseudonymise) -> None:
        read(source)

    return step


def _pseudonym(field: FieldDescriptor, read: Read, canonical: Canonical, epoch: float) -> Step:
    """Writes the unit's keyed hash of this epoch in the field's own type."""
    name, hidden = field.name, ids.in_type(field, f"alias(unit, {epoch!r})")
    if not field.has_presence:
        text = f"unit = canonical@(value)\nout = {hidden}"
        return name, Transform(None, text, {"canonical@": canonical})
    hide = function("hide", "unit, alias", "", hidden, {})
    return lambda source, target, pseudonymise: setattr(target, name, hide(read(source), pseudonymise))


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
