"""`dpmesh estimate`: every kind of field from every form of file, in constant memory; wrong input; exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from google.protobuf import json_format
from google.protobuf.proto import serialize_length_prefixed

from dpmesh.cli import records
from dpmesh.cli.console import InputError
from dpmesh.estimate import Reader
from dpmesh.policy import Policy
from tests.support.protos import compiled

BODY = """
message Report {
  option (dpmesh.v1.message) = {epsilon: 30.0};
  enum Color { RED = 0; GREEN = 5; }
  string unit = 1 [(dpmesh.v1.field).unit = {}];
  optional double speed = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 60}];
  double ends = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 mechanism: DUCHI}];
  Color color = 4 [(dpmesh.v1.field).categorical = {}];
  dpmesh.v1.CategoryReport word = 5 [(dpmesh.v1.field).categorical = {}];
  repeated float step = 6 [(dpmesh.v1.field).vector = {dimension: 3 l2_norm: 1}];
  map<string, uint32> visits = 7 [(dpmesh.v1.field).histogram = {keys: ["a", "b"] lower: 0 upper: 10}];
  LatLng at = 8 [(dpmesh.v1.field).location = {
    min_latitude: 45.8 max_latitude: 47.9 min_longitude: 5.9 max_longitude: 10.5
    latitude: "lat" longitude: "lng"}];
  google.protobuf.Timestamp when = 9 [(dpmesh.v1.field).time = {
    earliest: "2026-01-01T00:00:00Z" latest: "2026-01-02T00:00:00Z"}];
  bytes free = 10 [(dpmesh.v1.field).public = {}];
}
message LatLng { double lat = 1; double lng = 2; }
message Other { string name = 40; }
"""


@pytest.fixture(scope="module")
def types():
    return compiled(BODY)


@pytest.fixture(scope="module")
def reader(types) -> Reader:
    return Reader(types.Report)


@pytest.fixture(scope="module")
def received(types, reader):
    report = types.Report(unit="u", speed=20, ends=0.3, color=5, visits={"a": 3}, step=[0.5, 0, 0])
    report.at.lat, report.at.lng, report.word.value = 46.9, 7.4, "yes"
    report.when.FromJsonString("2026-01-01T08:00:00Z")
    return [reader.plan.protect(report, lambda *_: bytes(16)) for _ in range(200)]


def delimited(messages) -> bytes:
    file = io.BytesIO()
    for message in messages:
        serialize_length_prefixed(message, file)
    return file.getvalue()


@pytest.fixture
def proto(write, types) -> Path:
    return write(
        "report.proto",
        f'syntax = "proto3";\npackage {types.package};\nimport "dpmesh/v1/privacy.proto";\n'
        f'import "dpmesh/v1/report.proto";\nimport "google/protobuf/timestamp.proto";\n{BODY}',
    )


@pytest.fixture
def binary(workplace, received, proto) -> Path:
    path = Path("reports.binpb")
    path.write_bytes(delimited(received))
    return path


def figures(ran) -> dict:
    assert ran.code == 0, ran.err
    return {entry["field"]: entry for entry in json.loads(ran.out)["fields"]}


def test_all_fields_of_binary_and_json_files(dpmesh, types, reader, received, binary, proto):
    Path("more.jsonl").write_text(
        "\n".join(json_format.MessageToJson(each, indent=None) for each in received[:50]) + "\n\n"
    )
    kind = f"{types.package}.Report"
    ran = dpmesh(
        "estimate", binary, "more.jsonl", "--proto", proto, "--type", kind, "--candidate", "yes", "--json"
    )
    found, every = figures(ran), [*received, *received[:50]]
    assert list(found) == ["speed", "ends", "color", "word", "step", "visits", "at", "when"]
    mean = reader.mean("speed", every)
    first = found["speed"]["figures"][0]
    assert (first["figure"], first["value"], first["low"], first["high"]) == (
        "mean",
        mean.value,
        mean.low,
        mean.high,
    )
    assert found["speed"]["n"] == 250
    assert {entry["figure"] for entry in found["speed"]["figures"]} == {"mean", "sum", "quantile", "share"}
    assert {entry["figure"] for entry in found["ends"]["figures"]} == {"mean", "sum"}
    shares = reader.frequencies("color", every)
    assert {entry["of"]: entry["value"] for entry in found["color"]["figures"]} == {
        name: share.value for name, share in shares.items()
    }
    assert [entry["of"] for entry in found["word"]["figures"]] == ["yes"]
    assert [entry["of"] for entry in found["step"]["figures"]] == [0, 1, 2]
    sums = reader.histogram("visits", every)
    assert {entry["of"]: entry["value"] for entry in found["visits"]["figures"]} == {
        k: s.value for k, s in sums.items()
    }
    assert len(found["at"]["figures"]) == 2 + len(reader.heat_map("at", every).cells)


def test_the_text(dpmesh, types, binary, proto):
    ran = dpmesh(
        "estimate", binary, "--proto", proto, "--type", f"{types.package}.Report", "--confidence", "0.9"
    )
    assert ran.code == 0
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[:2] == ["speed (numeric): 200 noisy values", "figure of estimate 0.9 interval"]
    assert lines[2].startswith("mean ")
    assert lines[2].endswith(" per place")
    assert any(line.startswith("quantile 0.5 ") for line in lines)
    assert any(line.startswith("share GREEN ") for line in lines)
    assert any(line.endswith("more, which --json shows") for line in lines)
    assert any(line.startswith("quantile 0.5 2026-01-01 ") for line in lines)
    assert "word: no estimate: holds any text" in ran.err


def test_columns_of_parquet_and_arrow(dpmesh, types, reader, received, proto):
    columns = pa.table(
        {
            "speed": [each.speed for each in received],
            "color": [each.color for each in received],
            "x": [1] * 200,
        }
    )
    pa.parquet.write_table(columns, "r.parquet", row_group_size=64)
    pa.feather.write_feather(columns, "r.arrow", chunksize=50)
    for name in ("r.parquet", "r.arrow"):
        ran = dpmesh("estimate", name, "--proto", proto, "--type", f"{types.package}.Report", "--json")
        found = figures(ran)
        assert found["speed"]["figures"][0]["value"] == reader.mean("speed", received).value
        assert found["color"]["n"] == 200
        assert (found["when"]["n"], found["when"]["figures"]) == (0, [])
    ran = dpmesh(
        "estimate", "r.parquet", "--proto", proto, "--type", f"{types.package}.Report", "--field", "when"
    )
    assert (ran.code, ran.out) == (2, "")
    assert "r.parquet: has no column of the fields when" in ran.err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.binpb", b"", "holds no messages"),
        ("empty.jsonl", b"\n", "holds no messages"),
        ("cut.binpb", b"\x09ab", "record 1 is cut off"),
        ("length.binpb", b"\x89", "record 1 is cut off"),
        ("long.binpb", b"\xff\xff\xff\xff\x0f", "record 1 has more than 64 MB"),
        ("endless.binpb", b"\xff" * 9, "record 1 has more than 64 MB"),
        ("text.binpb", b"\x06secret", "record 1 is no t"),
        ("text.jsonl", b'{"speed": "secret"}', "record 1 is no t"),
        ("field.jsonl", b'{"secret": 1}', "record 1 is no t"),
        ("deep.jsonl", b"[" * 9999, "record 1 is no t"),
        ("no.parquet", b"secret", "is no parquet file"),
        ("no.arrow", b"secret", "is no arrow file"),
    ],
)
def test_files_that_hold_no_such_messages(dpmesh, types, proto, name, content, says):
    Path(name).write_bytes(content)
    ran = dpmesh("estimate", name, "--proto", proto, "--type", f"{types.package}.Report")
    assert (ran.code, ran.out) == (2, "")
    assert f"{name}: {says}" in ran.err
    assert "secret" not in ran.err


def test_messages_of_another_type_and_values_of_another_policy(dpmesh, types, proto, received):
    Path("other.binpb").write_bytes(delimited([types.Other(name="secret")]))
    kind = f"{types.package}.Report"
    ran = dpmesh("estimate", "other.binpb", "--proto", proto, "--type", kind)
    assert (ran.code, "record 1 is no" in ran.err, "secret" in ran.err) == (2, True, False)
    changed = types.Report.FromString(received[0].SerializeToString())
    changed.speed = 12345.678
    Path("changed.binpb").write_bytes(delimited([changed]))
    ran = dpmesh("estimate", "changed.binpb", "--proto", proto, "--type", kind, "--field", "speed")
    assert (ran.code, ran.out) == (1, "")
    assert "changed.binpb: speed: one of the values lies outside of" in ran.err
    assert "12345" not in ran.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--field", "nothing"], "has no such field with noise"),
        (["--field", "free"], "is public and carries no noise"),
        (["--field", "word"], "list those whose shares you want"),
        (["--bins", "0"], "bins must be"),
        (["--cell-km", "-1"], "cell_km must be above 0"),
        (["--confidence", "1"], "between 0 and 1"),
        (["--quantile", "0"], "between 0 and 1"),
    ],
)
def test_options_that_make_no_sense(dpmesh, types, binary, proto, options, says):
    if options[0] == "--bins":
        options = [*options, "--field", "speed"]
    if options[0] == "--cell-km":
        options = [*options, "--field", "at"]
    ran = dpmesh("estimate", binary, "--proto", proto, "--type", f"{types.package}.Report", *options)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_the_type_may_be_left_out_if_only_one_is_protected(dpmesh, types, binary, proto, write):
    ran = dpmesh("estimate", binary, "--proto", proto, "--field", "speed")
    assert ran.code == 0
    ran = dpmesh("estimate", binary, "--proto", proto, "--type", "no.Type")
    assert (ran.code, "no such message type" in ran.err) == (2, True)
    ran = dpmesh("estimate", binary, "--proto", proto, "--type", f"{types.package}.Other")
    assert (ran.code, "nothing to estimate" in ran.err) == (2, True)
    bare = write("bare.proto", 'syntax = "proto3"; message A {}')
    ran = dpmesh("estimate", binary, "--proto", bare)
    assert (ran.code, "message types that are protected: none" in ran.err) == (2, True)


def test_an_overlay_decides(dpmesh, types, proto, received, write):
    kind = f"{types.package}.Report"
    write("policy.yaml", f"fields:\n  {kind}.speed:\n    public: {{}}\n")
    Path("r.binpb").write_bytes(delimited(received))
    ran = dpmesh(
        "estimate", "r.binpb", "--proto", proto, "--type", kind, "--policy", "policy.yaml", "--field", "speed"
    )
    assert (ran.code, "is public and carries no noise" in ran.err) == (2, True)


def test_a_missing_file(dpmesh, types, proto):
    ran = dpmesh("estimate", "missing.binpb", "--proto", proto, "--type", f"{types.package}.Report")
    assert (ran.code, "missing.binpb: can't be read" in ran.err) == (2, True)
    with pytest.raises(InputError):
        list(records.columns(Path("missing.parquet"), ["speed"]))


def test_a_message_that_holds_nothing_but_padding_is_one(workplace):
    """A protected message may hold zeros alone, which take no room."""
    kind = compiled(
        "message M { option (dpmesh.v1.message) = {pad_to: 32}; int32 a = 1 [(dpmesh.v1.field).numeric = "
        "{lower: 0 upper: 1 epsilon: 1 output: IN_RANGE}]; }"
    ).M
    plan = Reader(kind).plan
    sent = [plan.protect(kind(), lambda *_: bytes(16)) for _ in range(40)]
    assert min(len(message.ListFields()) for message in sent) == 0
    Path("padded.binpb").write_bytes(delimited(sent))
    assert sum(map(len, records.messages(Path("padded.binpb"), kind.DESCRIPTOR))) == 40


def test_an_unexpected_exception_is_told_without_its_text(dpmesh, types, binary, proto, monkeypatch):
    def fail(*_):
        raise KeyError("secret")

    monkeypatch.setattr(records, "messages", fail)
    ran = dpmesh(
        "estimate", binary, "--proto", proto, "--type", f"{types.package}.Report", "--field", "speed"
    )
    assert (ran.code, ran.out) == (2, "")
    assert "reports.binpb: can't be read (KeyError)" in ran.err
    assert "secret" not in ran.err


def test_two_columns_of_one_name(workplace):
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], ["speed", "speed"])
    pa.parquet.write_table(table, "twice.parquet")
    with pytest.raises(InputError, match="several columns of the field speed"):
        list(records.columns(Path("twice.parquet"), ["speed"]))


def test_files_are_read_some_records_at_a_time(types, received):
    Path("many.binpb").write_bytes(delimited(received) * 20)
    sizes = [len(batch) for batch in records.messages(Path("many.binpb"), types.Report.DESCRIPTOR)]
    assert sizes == [1000] * 4


@pytest.fixture
def two_policies(workplace, types, received):
    """A policy file beside the annotations: reports of each, and the digests."""
    name = f"{types.package}.Report"
    text = f"fields:\n  {name}.speed: {{numeric: {{lower: 0, upper: 60, epsilon: 1}}}}\n"
    Path("new.yaml").write_text(text)
    rules = Policy("new.yaml")
    plan = rules.plan(types.Report.DESCRIPTOR)
    report = types.Report(unit="u", speed=40)
    later = [plan.protect(report, lambda *_: bytes(16)) for _ in range(100)]
    digests = Policy().plan(types.Report.DESCRIPTOR).version, plan.version
    return digests, later, dict(zip(digests, (None, rules), strict=True))


def test_reports_of_several_policies(dpmesh, types, received, binary, proto, two_policies):
    (old, new), later, policies = two_policies
    Path("later.binpb").write_bytes(delimited(later))
    every = [*((old, each) for each in received), *((new, each) for each in later)]
    with Path("every.jsonl").open("w") as file:
        for digest, each in every:
            file.write(json.dumps({"policy": digest, **json_format.MessageToDict(each)}) + "\n")
    columns = {"speed": [each.speed for _, each in every], "policy": [digest for digest, _ in every]}
    pa.parquet.write_table(pa.table(columns), "every.parquet")
    mean = Reader(types.Report, policies=policies).mean("speed", every)
    asked = ["--proto", proto, "--type", f"{types.package}.Report", "--field", "speed", "--json"]
    asked += ["--policy", f"{old}=", "--policy", f"{new}=new.yaml"]
    for files in (
        [f"{old}={binary}", f"{new}=later.binpb"],
        ["every.jsonl", "--digest", "policy"],
        ["every.parquet", "--digest", "policy"],
    ):
        first = figures(dpmesh("estimate", *files, *asked))["speed"]["figures"][0]
        assert (first["value"], first["low"], first["high"]) == pytest.approx(
            (mean.value, mean.low, mean.high)
        )


def test_digests_and_policies_that_do_not_fit_are_refused(
    dpmesh, types, received, binary, proto, two_policies
):
    (old, new), _, _ = two_policies
    asked = ["--proto", proto, "--type", f"{types.package}.Report", "--field", "speed"]
    both = ["--policy", f"{old}=", "--policy", f"{new}=new.yaml"]
    Path("bad.jsonl").write_text('{"speed": 41.77777777}\n')
    Path("unknown.jsonl").write_text('{"policy": "0000000000000000", "speed": 41.77777777}\n')
    pa.parquet.write_table(pa.table({"speed": [1.0]}), "bad.parquet")
    for arguments, code, words in (
        ([binary, *both], 2, "name its policy: DIGEST=FILE"),
        ([binary, *both, "--digest", "policy"], 2, "has no digests"),
        (["bad.jsonl", *both, "--digest", "policy"], 2, "record 1 has no key policy"),
        (["bad.parquet", *both, "--digest", "policy"], 2, "has no column policy"),
        (["unknown.jsonl", *both, "--digest", "policy"], 1, "none of the reader's policies"),
        ([f"{'0' * 16}={binary}", *both], 1, "none of the reader's policies"),
        ([binary, "--digest", "policy"], 2, "needs the policies"),
        ([binary, "--policy", "new.yaml", "--policy", f"{old}="], 2, "give each as DIGEST=FILE"),
        ([binary, "--policy", f"{old}=new.yaml"], 2, f"which is {new}"),
    ):
        ran = dpmesh("estimate", *arguments, *asked)
        assert (ran.code, words in ran.err.replace("\n", " ")) == (code, True), (arguments, ran.err)
        assert "41.7" not in ran.err
