"""Units: which spellings of an id are one unit, and which are not."""

import unicodedata

import pytest

from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.policy import Policy
from dpmesh.policy.kinds.unit import normalization
from dpmesh.policy.overlay_file import parse
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}"
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def types(normalize, more="", field="string id = 1", syntax="proto3"):
    unit = f"(dpmesh.v1.field).unit = {{normalize: {normalize} {more}}}"
    optional = "optional " if syntax == "proto2" else ""
    return compiled(f"message M {{ {field} [{unit}]; {optional}double a = 2 [{NUM}]; }}", syntax)


def units(made, *ids):
    """The units that ids stand for, as numbers: equal where the units are."""
    plan = Policy().plan(made.M.DESCRIPTOR)
    found = [plan.owners(made.M(id=each))[0][1] for each in ids]
    return [found.index(each) for each in found]


@pytest.mark.parametrize(
    ("normalize", "ids", "expected"),
    [
        ("[]", ("s-7", "S-7", "s-7 ", "s-7\0", COMPOSED, DECOMPOSED), [0, 1, 2, 3, 4, 5]),
        ("AS_IS", ("s-7", "S-7", "s-7 ", COMPOSED, DECOMPOSED), [0, 1, 2, 3, 4]),
        ("NFC", ("s-7", "S-7", "s-7 ", COMPOSED, DECOMPOSED), [0, 1, 2, 3, 3]),
        (
            "CASE_FOLD",
            ("s-7", "S-7", "stra\u00dfe", "STRASSE", "s-7 ", COMPOSED, DECOMPOSED),
            [0, 0, 2, 2, 4, 5, 6],
        ),
        (
            "STRIP",
            ("s-7", " s-7", "s-7\0", "\ufeffs-7\r\n", "\u00a0s-7\u200b", "S-7", "s -7"),
            [0, 0, 0, 0, 0, 5, 6],
        ),
        ("[STRIP, CASE_FOLD, NFC]", ("s-7", "\ufeffS-7\0", COMPOSED, DECOMPOSED.upper() + " "), [0, 0, 2, 2]),
        # A Latin and a Cyrillic letter look alike, and are different.
        ("[STRIP, CASE_FOLD, NFC]", ("a", "\u0430"), [0, 1]),
        # Folding undoes the composition of one, and the other folds only once it is decomposed (Unicode, 3.13).
        ("[CASE_FOLD, NFC]", ("\u1f80", "\u1f88", "\u1f00\u03b9"), [0, 0, 0]),
        ("[CASE_FOLD, NFC]", ("\u0345\u0300", "\u0300\u0345"), [0, 0]),
    ],
)
def test_spellings(normalize, ids, expected):
    assert units(types(normalize), *ids) == expected


@pytest.mark.parametrize("field", ["string id = 1", "optional string id = 1"])
@pytest.mark.parametrize("form", ["PSEUDONYM", "SUPPRESSED", "RAW"])
def test_the_pseudonym_is_of_the_unit_that_pays_and_a_raw_id_keeps_its_spelling(field, form):
    made = types("[NFC, CASE_FOLD, STRIP]", f"form: {form}", field)
    plan = Policy().plan(made.M.DESCRIPTOR)
    seen = []

    def alias(unit, _):
        seen.append(unit)
        return b"\x01" * 16

    message = made.M(id=" Sensor-7\0")
    assert plan.owners(message) == [(0, b"sensor-7")]
    for run in (plan.protect, plan.blank):
        out = run(message, alias)
        assert out.id == {"PSEUDONYM": "01" * 16, "SUPPRESSED": "", "RAW": " Sensor-7\0"}[form]
    assert seen == [b"sensor-7"] * (2 if form == "PSEUDONYM" else 0)


@pytest.mark.parametrize("blank", ["", " ", "\0", "\u200b \ufeff\n"])
@pytest.mark.parametrize("field", ["string id = 1", "optional string id = 1"])
def test_an_id_of_which_nothing_is_left_is_missing(blank, field):
    made = types("STRIP", field=field)
    with pytest.raises(ProtectionError, match="MISSING_UNIT"):
        Policy().plan(made.M.DESCRIPTOR).owners(made.M(id=blank))


def test_an_id_that_is_no_text_can_not_be_normalized_and_is_in_no_error():
    made = types("NFC", field="optional string id = 1", syntax="proto2")
    message = made.M.FromString(b"\x0a\x03\xff\xfeA")
    with pytest.raises(ProtectionError, match="not UTF-8.*WRONG_TYPE") as caught:
        Policy().plan(made.M.DESCRIPTOR).owners(message)
    assert "xff" not in repr(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("normalize", "field", "text"),
    [
        ("NFC", "bytes id = 1", "normalize is for strings, and this is bytes"),
        ("[STRIP]", "int64 id = 1", "normalize is for strings, and this is int64"),
        ("AS_IS", "fixed32 id = 1", "normalize is for strings, and this is fixed32"),
        ("[AS_IS, NFC]", "string id = 1", "AS_IS, and something else"),
    ],
)
def test_what_can_not_be_normalized(normalize, field, text):
    with pytest.raises(AnnotationError, match=text) as caught:
        Policy().plan(types(normalize, field=field).M.DESCRIPTOR)
    assert caught.value.rule == "unit-normalize"


def test_an_overlay_can_say_it_and_a_newer_schemas_normalization_is_refused():
    made = types("[]")
    name = f"{made.package}.M.id"
    overlay = parse({"fields": {name: {"unit": {"normalize": ["CASE_FOLD"]}}}}, "test")
    plan = Policy(overlay).plan(made.M.DESCRIPTOR)
    assert plan.owners(made.M(id="A")) == [(0, b"a")]
    overlay.fields[name].unit.normalize.append(9)
    with pytest.raises(AnnotationError, match="unknown normalize"):
        Policy(overlay).plan(made.M.DESCRIPTOR)


def test_canonically_equivalent_texts_are_one_unit():
    normalized = normalization(nfc=True, fold=True, strip=True)
    for text in map(chr, range(0x80, 0x20000)):
        if 0xD800 <= ord(text) < 0xE000:
            continue
        forms = {normalized(unicodedata.normalize(form, f"a{text}b")) for form in ("NFC", "NFD")}
        assert forms == {normalized(f"a{text}b")}, hex(ord(text))
