"""Policy files: an entry that rules nothing is refused, and each mistake is named with its line and key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dpmesh
from dpmesh.errors import AnnotationError, ConfigError
from dpmesh.policy import Policy
from dpmesh.policy.overlay_file import load, parse, parse_bytes
from dpmesh.v1 import policy_pb2, privacy_pb2
from tests.support.protos import compiled

KINDS = [field.name for field in privacy_pb2.FieldRules.DESCRIPTOR.oneofs_by_name["kind"].fields]


def refusal(tmp_path: Path, text: str, name: str = "policy.yaml") -> str:
    """What the error says of a policy file, without the file's folder."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Policy(path)
    prefix = f"policy file {path}:"
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["", "null", "~", "Null"])
def test_a_kind_without_a_value_is_refused_on_its_line(tmp_path: Path, kind: str, value: str) -> None:
    text = f"fields:\n  acme.v1.Ack.id: {{public: {{}}}}\n  acme.v1.Ack.text:\n    {kind}: {value}\n"
    assert refusal(tmp_path, text).startswith(f"4:5: fields acme.v1.Ack.text {kind}: has no value")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_null_in_json_is_refused_on_its_line(tmp_path: Path, kind: str) -> None:
    text = f'{{"fields":\n {{"acme.v1.Ack.text": {{"{kind}": null}}}}}}'
    assert refusal(tmp_path, text, "policy.json").startswith(
        f"2:24: fields acme.v1.Ack.text {kind}: has no value"
    )


def test_the_error_says_how_to_write_an_empty_kind(tmp_path: Path) -> None:
    assert "write `suppress: {}`" in refusal(tmp_path, "fields: {a.B.c: {suppress: }}")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        # Null at every depth.
        ("", " is empty"),
        ("# only a comment\n", " is empty"),
        ("null", "1:1: is empty"),
        ("fields:\n", "1:1: fields: has no value"),
        ("version:\n", "1:1: version: has no value"),
        ("fields:\n  a.B.c:\n", "2:3: fields a.B.c: sets nothing"),
        ("messages:\n  a.B:\n", "2:3: messages a.B: sets nothing"),
        ("methods:\n  /a.S/M:\n", "2:3: methods /a.S/M: sets nothing"),
        ("oneofs:\n  a.B.o:\n", "2:3: oneofs a.B.o: sets nothing"),
        ("methods:\n  /a.S/M:\n    require:\n", "3:5: methods /a.S/M require: has no value"),
        ("methods:\n  /a.S/M:\n    labels:\n", "3:5: methods /a.S/M labels: has no value"),
        ("methods:\n  /a.S/M:\n    labels:\n    - x\n    -\n", "5:6: methods /a.S/M labels [1]: must be text"),
        ("messages:\n  a.B: {unannotated: }\n", "2:9: messages a.B unannotated: has no value"),
        ("messages:\n  a.B: {epsilon: }\n", "2:9: messages a.B epsilon: has no value"),
        ("oneofs:\n  a.B.o: {public: }\n", "2:11: oneofs a.B.o public: has no value"),
        ("fields:\n  a.B.c: {max_items: }\n", "2:11: fields a.B.c max_items: has no value"),
        (
            "fields:\n  a.B.c: {numeric: {lower: 0, upper: }}\n",
            "2:31: fields a.B.c numeric upper: has no value",
        ),
        ("fields:\n  a.B.c: {categorical: {domain: }}\n", "2:25: fields a.B.c categorical domain: has no"),
        ("fields:\n  a.B.c: {categorical: {domain: [x, null]}}\n", "2:37: fields a.B.c categorical domain [1]"),
        ("fields:\n  a.B.c: {unit: {epoch: }}\n", "2:18: fields a.B.c unit epoch: has no value"),
        # Entries that set nothing.
        ("fields:\n  a.B.c: {}\n", "2:3: fields a.B.c: sets nothing"),
        ("fields:\n  a.B.c: {max_items: 0}\n", "2:3: fields a.B.c: sets nothing"),
        ("messages:\n  a.B: {}\n", "2:3: messages a.B: sets nothing"),
        ("messages:\n  a.B: {labels: []}\n", "2:3: messages a.B: sets nothing"),
        ("methods:\n  /a.S/M: {}\n", "2:3: methods /a.S/M: sets nothing"),
        ("oneofs:\n  a.B.o: {}\n", "2:3: oneofs a.B.o: sets nothing"),
        # A value of another shape.
        ("epoch: four\n", "1:1: epoch: must be a whole number, 0 or above"),
        ("epoch: -4\n", "1:1: epoch: must be a whole number, 0 or above"),
        ("fields:\n  a.B.c: suppress\n", "2:3: fields a.B.c: must be a mapping"),
        ("fields:\n  a.B.c: [suppress]\n", "2:3: fields a.B.c: must be a mapping"),
        ("fields:\n  a.B.c: {suppress: true}\n", "2:11: fields a.B.c suppress: must be a mapping"),
        ("fields: [a.B.c]\n", "1:1: fields: must be a mapping"),
        ("[fields]\n", "1:1: the top level must be a mapping"),
        ("fields:\n  7: {suppress: {}}\n", "2:3: fields [7]: must be a full name"),
        ("methods:\n  /a.S/M: {labels: health}\n", "2:12: methods /a.S/M labels: must be a list"),
        ("methods:\n  /a.S/M: {labels: [7]}\n", "2:21: methods /a.S/M labels [0]: must be text"),
        # YAML reads a date without quotes as a time, and NO (Norway, say) as false.
        (
            "fields:\n  a.B.c: {time: {earliest: 2026-01-01T00:00:00Z}}\n",
            "2:18: fields a.B.c time earliest: must be text (in quotes, if it looks like a number, a date or yes and no)",
        ),
        (
            "fields:\n  a.B.c: {categorical: {domain: [NO]}}\n",
            "2:34: fields a.B.c categorical domain [0]: must be text (in quotes, if it looks like a number, a date or yes and no)",
        ),
        ("methods:\n  /a.S/M: {require: 1}\n", "2:12: methods /a.S/M require: must be true or false"),
        ("methods:\n  /a.S/M: {require: 'yes'}\n", "2:12: methods /a.S/M require: must be true or false"),
        ("messages:\n  a.B: {epsilon: yes}\n", "2:9: messages a.B epsilon: must be a number"),
        ("messages:\n  a.B: {epsilon: much}\n", "2:9: messages a.B epsilon: must be a number"),
        ("messages:\n  a.B: {epsilon: [1]}\n", "2:9: messages a.B epsilon: must be a number"),
        ("fields:\n  a.B.c: {max_items: -1}\n", "2:11: fields a.B.c max_items: must be a whole number"),
        ("fields:\n  a.B.c: {max_items: 1.5}\n", "2:11: fields a.B.c max_items: must be a whole number"),
        ("fields:\n  a.B.c: {max_items: yes}\n", "2:11: fields a.B.c max_items: must be a whole number"),
        ("fields:\n  a.B.c: {unit: {epoch: 1h}}\n", "2:18: fields a.B.c unit epoch: must be a time in seconds"),
        ("messages:\n  a.B: {unannotated: 3}\n", "2:9: messages a.B unannotated: must be one of PASS, SUPP"),
        # Names that are not there, with the nearest one that is.
        ("feilds: {}\n", "1:1: feilds: is not known here; did you mean fields?"),
        (
            "fields:\n  a.B.c: {numerik: {}}\n",
            "2:11: fields a.B.c numerik: is not known here; did you mean numeric? (known: unit, numeric,",
        ),
        ("fields:\n  a.B.c: {numeric: {lowwer: 1}}\n", "2:21: fields a.B.c numeric lowwer: is not known here; did"),
        ("messages:\n  a.B: {unanotated: PASS}\n", "2:9: messages a.B unanotated: is not known here; did you"),
        ("messages:\n  a.B: {unannotated: SUPRESS}\n", "2:9: messages a.B unannotated: must be one of PASS, SUPPRESS, REJECT; did you mean SUPPRESS?"),
        ("fields:\n  a.B.c: {numeric: {mechanism: LAPLACE}}\n", "2:21: fields a.B.c numeric mechanism: must be one of AUTO"),
        ("fields:\n  a.B.c: {public: {x: 1}}\n", "2:20: fields a.B.c public x: is not known here (known: none)"),
        ("7: {}\n", "1:1: [7]: is not known here"),
        # What would replace something without a word.
        (
            "fields:\n  a.B.c: {numeric: {lower: 0}, public: {}}\n",
            "2:32: fields a.B.c public: stands beside numeric",
        ),
        (
            "fields:\n  a.B.c: {max_items: 3, maxItems: 4}\n",
            "2:25: fields a.B.c maxItems: stands beside max_items",
        ),
        (
            "fields:\n  a.B.c: {vector: {l1_norm: 1, l2_norm: 1}}\n",
            "2:32: fields a.B.c vector l2_norm: stands beside l1_norm",
        ),
        ("fields:\n  a: {public: {}}\n  a: {suppress: {}}\n", "3:3: written twice: a"),
        ("x: &x {public: {}}\nfields:\n  a: {<<: *x, max_items: 2}\n", "3:7: merge keys"),
        # No document.
        ("fields: [\n", "2:1: not YAML or JSON"),
        ("fields: {a.B.c: {suppress: {}}}\n---\nfields: {}\n", "2:1: not YAML or JSON"),
        ("version: 2020-13-45\n", " not YAML or JSON"),
        ("[" * 1000, " nested more than 100 levels deep"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_key(tmp_path: Path, text: str, start: str) -> None:
    assert refusal(tmp_path, text).startswith(start)


def test_no_error_quotes_a_value(tmp_path: Path) -> None:
    for text in (
        "fields: {a.B.c: {numeric: {lower: secret}}}",
        "fields: {a.B.c: secret}",
        "messages: {a.B: {unannotated: secret}}",
        "messages: {a.B: {labels: secret}}",
        "fields: {a.B.c: {unit: {epoch: secret}}}",
        "version: {secret: secret}",
        "secret",
        "[secret",
    ):
        assert "secret" not in refusal(tmp_path, text), text


def test_a_policy_that_rules_nothing_on_purpose_says_so() -> None:
    for document in ({}, {"version": "1"}, {"fields": {}}):
        assert not parse(document, "test").fields


@pytest.mark.parametrize("kind", ["unit", "suppress", "public", "message_id", "categorical"])
def test_kinds_that_need_no_settings_are_written_with_braces(kind: str) -> None:
    assert parse({"fields": {"a.B.c": {kind: {}}}}, "test").fields["a.B.c"].WhichOneof("kind") == kind


def test_explicit_defaults_are_rules() -> None:
    policy = parse(
        {
            "messages": {"a.B": {"unannotated": "PASS"}},
            "methods": {"/a.S/M": {"require": False}},
            "oneofs": {"a.B.o": {"public": False}},
            "fields": {"a.B.c": {"numeric": {"lower": 0, "upper": "1", "mechanism": 0}, "maxItems": 2.0}},
        },
        "test",
    )
    assert policy.messages["a.B"].HasField("unannotated")
    assert policy.methods["/a.S/M"].HasField("require")
    assert policy.oneofs["a.B.o"].HasField("public")
    assert policy.fields["a.B.c"].numeric.HasField("lower")
    assert policy.fields["a.B.c"].max_items == 2


@pytest.mark.parametrize("section", ["fields", "messages", "methods", "oneofs"])
def test_a_message_with_an_empty_entry_is_refused(section: str) -> None:
    policy = policy_pb2.Policy()
    getattr(policy, section)["a.b"].SetInParent()
    with pytest.raises(ConfigError, match=rf"{section} a\.b: sets nothing"):
        dpmesh.open(policy=policy)


def test_a_message_of_a_newer_schema_is_refused() -> None:
    with pytest.raises(ConfigError, match="upgrade dpmesh"):
        Policy(policy_pb2.Policy.FromString(b"\xa2\x06\x00"))


def test_an_empty_path_is_not_taken_for_no_policy() -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        dpmesh.open(policy="")


@pytest.mark.parametrize(
    "body",
    [
        "message M { string a = 1 [(dpmesh.v1.field) = {}]; }",
        "message M { option (dpmesh.v1.message) = {}; string a = 1; }",
        "message M { oneof o { option (dpmesh.v1.oneof) = {}; string a = 1; string b = 2; } }",
        "message M { Inner i = 1; } message Inner { string a = 1 [(dpmesh.v1.field) = {}]; }",
        "message M { Inner i = 1; } message Inner { option (dpmesh.v1.message) = {labels: []}; string a = 1; }",
        "message M { string z = 1 [(dpmesh.v1.field).suppress = {}]; string a = 2 [(dpmesh.v1.field) = {}]; }",
        "message M { string a = 1 [(dpmesh.v1.field).max_items = 0]; }",
    ],
)
def test_an_annotation_that_sets_nothing_is_an_error(body: str) -> None:
    with pytest.raises(AnnotationError, match=r"sets nothing \[empty-rule\]"):
        Policy().plan(compiled(body).M.DESCRIPTOR)


def test_a_methods_annotation_that_sets_nothing_is_an_error() -> None:
    types = compiled(
        "message M {} service S { rpc R(M) returns (M) { option (dpmesh.v1.method) = {}; } }", "proto3"
    )
    method = types.M.DESCRIPTOR.file.services_by_name["S"].methods[0]
    for ask in (Policy().requires, lambda _: Policy().labels(f"/{types.package}.S/R")):
        with pytest.raises(AnnotationError, match="empty-rule"):
            ask(method)


@pytest.mark.parametrize(
    "body",
    [
        "message M { repeated double a = 1 [(dpmesh.v1.field).max_items = 3]; }",
        "message M { repeated N n = 1 [(dpmesh.v1.field).max_items = 3]; } message N { string a = 1; }",
        "message M { string z = 1 [(dpmesh.v1.field).suppress = {}]; repeated string a = 2 [(dpmesh.v1.field).max_items = 3]; }",
    ],
)
def test_a_length_where_nothing_is_protected_is_an_error(body: str) -> None:
    with pytest.raises(AnnotationError, match="max-items"):
        Policy().plan(compiled(body).M.DESCRIPTOR)


def test_a_length_of_protected_messages_is_a_rule() -> None:
    body = (
        "message M { repeated N n = 1 [(dpmesh.v1.field).max_items = 3]; } "
        "message N { string a = 1 [(dpmesh.v1.field).suppress = {}]; }"
    )
    assert Policy().plan(compiled(body).M.DESCRIPTOR) is not None


NUMBER = "(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}"


@pytest.mark.parametrize(
    ("body", "section", "name", "rules", "dropped"),
    [
        (
            f"message M {{ repeated double a = 1 [{NUMBER}, (dpmesh.v1.field).max_items = 3]; }}",
            "fields",
            "M.a",
            {"max_items": 4},
            "kind",
        ),
        (
            "message M { option (dpmesh.v1.message).unannotated = SUPPRESS; string a = 1; }",
            "messages",
            "M",
            {"labels": ["health"]},
            "unannotated",
        ),
    ],
)
def test_an_overlay_does_not_drop_what_the_annotation_sets(
    body: str, section: str, name: str, rules: dict, dropped: str
) -> None:
    types = compiled(body)
    policy = Policy(parse({section: {f"{types.package}.{name}": rules}}, "test"))
    with pytest.raises(AnnotationError, match=rf"leaves out its {dropped} \[overlay-drops\]"):
        policy.plan(types.M.DESCRIPTOR)


def test_an_overlay_opens_a_method_only_by_saying_so() -> None:
    types = compiled(
        "message M {} service S { rpc R(M) returns (M) { option (dpmesh.v1.method) = {require: true}; } }"
    )
    method = types.M.DESCRIPTOR.file.services_by_name["S"].methods[0]
    name = f"/{types.package}.S/R"
    silent = Policy(parse({"methods": {name: {"labels": ["x"]}}}, "test"))
    with pytest.raises(AnnotationError, match="overlay-drops"):
        silent.requires(method)
    said = Policy(parse({"methods": {name: {"labels": ["x"], "require": False}}}, "test"))
    assert Policy().requires(method)
    assert not said.requires(method)


def test_an_overlay_opens_a_field_or_message_only_by_saying_so() -> None:
    types = compiled(
        f"message M {{ option (dpmesh.v1.message).unannotated = REJECT; double a = 1 [{NUMBER}]; string b = 2; }}"
    )
    package = types.package
    document = {
        "fields": {f"{package}.M.a": {"public": {}}},
        "messages": {f"{package}.M": {"unannotated": "PASS"}},
    }
    assert Policy(parse(document, "test")).plan(types.M.DESCRIPTOR) is None


def test_an_annotation_that_no_compiler_interpreted_is_an_error() -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name="left.proto", package="left", syntax="proto3")
    field = file.message_type.add(name="M").field.add(name="a", number=1, type=9, label=1, json_name="a")
    option = field.options.uninterpreted_option.add(aggregate_value="suppress {}")
    option.name.add(name_part="dpmesh.v1.field", is_extension=True)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    with pytest.raises(AnnotationError, match="uninterpreted"):
        Policy().plan(pool.FindMessageTypeByName("left.M"))


LOOK_UPS = """
from google.protobuf import descriptor_pb2
from dpmesh.policy import Policy
from dpmesh.policy.overlay_file import parse
rules = {
    "fields": {"suppress": {}}, "messages": {"epsilon": 1}, "oneofs": {"epsilon": 1}, "methods": {"require": True}
}
names = ["google.protobuf.FieldDescriptorProto." + end for end in ("", "kind", "name", "Type", "nothing", "a.b")]
names += ["", ".", "..", "google.protobuf", "google.protobuf.FieldOptions", "nothing", "no.such.thing", "/", "//", "/a/"]
found = set()
for section, rule in rules.items():
    policy = Policy(parse({section: {name: rule for name in names}}, "test"))
    found |= {(section, name) for name in set(names) - set(policy.unresolved_overlays())}
print(sorted(found))
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_names_that_no_proto_has_are_looked_up_without_a_crash(implementation: str) -> None:
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UPS], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert eval(done.stdout) == [
        ("fields", "google.protobuf.FieldDescriptorProto.name"),
        ("messages", "google.protobuf.FieldOptions"),
    ]


def test_the_line_is_that_of_the_file_also_for_load(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text("fields:\n  a.B.c: {suppress: }\n")
    with pytest.raises(ConfigError, match=r"p\.yml:2:11: "):
        load(path)


def test_an_overlay_that_leaves_out_labels_is_refused() -> None:
    """A budget that chooses by them would not be charged any more."""
    types = compiled(
        'message M { option (dpmesh.v1.message) = {labels: "health" epsilon: 1};'
        " bool b = 1 [(dpmesh.v1.field).categorical = {}]; }"
    )
    overlays = policy_pb2.Policy()
    overlays.messages[types.M.DESCRIPTOR.full_name].epsilon = 2
    with pytest.raises(AnnotationError, match=r"labels.*overlay-drops"):
        Policy(overlays).plan(types.M.DESCRIPTOR)
    overlays.messages[types.M.DESCRIPTOR.full_name].labels.append("health")
    assert Policy(overlays).plan(types.M.DESCRIPTOR).labels == ("health",)


def test_entries_that_set_nothing_are_named_together() -> None:
    document = {"fields": {"a.B.c": {}, "a.B.d": {"suppress": {}}, "a.B.e": None}, "oneofs": {"a.B.o": {}}}
    with pytest.raises(ConfigError) as caught:
        parse(document, "test")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == [
        " fields a.B.c",
        " fields a.B.e",
        " oneofs a.B.o",
    ]


@pytest.mark.parametrize(
    "text",
    ['epoch: !!int ""', "epoch: !!int _", 'epoch: !!float ""', "fields: !!map [a]", 'fields: {!!int "": {}}'],
)
def test_what_the_yaml_library_stumbles_over_is_no_policy(text: str) -> None:
    """Another error would end a mesh that starts with such a file, though it has a policy that it took before."""
    with pytest.raises(ConfigError, match="not YAML or JSON"):
        parse_bytes(text.encode(), "p.yaml")
