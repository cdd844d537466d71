"""What the compiler makes of annotations: costs, scopes, and every rule it refuses."""

import math
from fractions import Fraction

import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2  # noqa: F401 - the pool has to know its methods

from dpmesh.accounting import AMOUNT, Cost
from dpmesh.errors import AnnotationError, ConfigError
from dpmesh.policy import Model, Policy, Severity
from dpmesh.policy.overlay_file import parse
from dpmesh.policy.policy import takes_rules
from dpmesh.v1 import identity_pb2
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
UNIT = "[(dpmesh.v1.field).unit = {}]"


def plan_of(body: str, name: str = "M", overlay: dict | None = None, syntax: str = "proto3"):
    types = compiled(body, syntax)
    text = {
        key: {f"{types.package}.{element}": rules for element, rules in entries.items()}
        for key, entries in (overlay or {}).items()
    }
    return Policy(parse(text, "test")).plan(getattr(types, name).DESCRIPTOR)


def error_of(body: str, **kwargs) -> AnnotationError:
    with pytest.raises(AnnotationError) as caught:
        plan_of(body, **kwargs)
    return caught.value


def test_a_message_without_annotations_has_no_plan():
    assert plan_of("message M { string a = 1; }") is None


def test_public_alone_protects_nothing():
    assert plan_of("message M { string a = 1 [(dpmesh.v1.field).public = {}]; }") is None


def test_message_epsilon_is_split_over_the_fields_that_set_none():
    plan = plan_of(
        f"""message M {{ option (dpmesh.v1.message) = {{epsilon: 2.0}};
        string id = 1 {UNIT};
        double a = 2 [{NUM} = {{lower: 0 upper: 1}}];
        double b = 3 [{NUM} = {{lower: 0 upper: 1}}];
        bool c = 4 [{CAT} = {{epsilon: 0.5}}]; }}"""
    )
    epsilons = {field.path: field.epsilon for field in plan.fields if field.mechanism_name}
    assert epsilons == {"a": Fraction(1), "b": Fraction(1), "c": Fraction(1, 2)}
    assert plan.cost.epsilon == 2.5 * AMOUNT
    assert [(scope.path, scope.cost) for scope in plan.scopes] == [("id", plan.cost)]


def test_thirds_of_an_epsilon_never_cost_more_than_the_whole():
    fields = " ".join(f"bool b{n} = {n} [{CAT} = {{}}];" for n in (1, 2, 3))
    shared = plan_of(f"message M {{ option (dpmesh.v1.message) = {{epsilon: 2}}; {fields} }}")
    repeated = plan_of(
        f"message M {{ repeated bool b = 1 [{CAT} = {{epsilon: 2}}, (dpmesh.v1.field).max_items = 3]; }}"
    )
    for plan in (shared, repeated):
        assert 2 * AMOUNT - 3 <= plan.cost.epsilon <= 2 * AMOUNT


def test_central_costs_go_to_no_unit():
    plan = plan_of(
        f"""message M {{ string id = 1 {UNIT};
        double own = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];
        double all = 3 [{NUM} = {{lower: 0 upper: 1000 epsilon: 0.25 sensitivity: 3}}]; }}"""
    )
    assert [(scope.path, scope.cost.epsilon) for scope in plan.scopes] == [("id", AMOUNT), ("", AMOUNT // 4)]
    assert [field.model for field in plan.fields if field.mechanism_name] == [Model.LOCAL, Model.CENTRAL]


def test_repeated_scalars_share_their_field_and_repeated_messages_multiply():
    plan = plan_of(
        f"""message M {{ repeated double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}, (dpmesh.v1.field).max_items = 4];
        repeated E e = 2 [(dpmesh.v1.field).max_items = 3]; }}
        message E {{ bool b = 1 [{CAT} = {{epsilon: 0.5}}]; }}"""
    )
    assert plan.cost.epsilon == AMOUNT + 3 * AMOUNT // 2
    by_path = {field.path: field for field in plan.fields}
    assert by_path["a"].repeats == 4
    assert by_path["a"].payload.mechanism.epsilon == Fraction(1, 4)
    assert by_path["e[].b"].instances == 3


def test_each_report_of_a_batch_is_paid_by_its_own_unit():
    types = compiled(
        f"""message Batch {{ repeated M reports = 1; map<string, M> named = 2; M one = 3; }}
        message M {{ string id = 1 {UNIT}; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}"""
    )
    plan = Policy().plan(types.Batch.DESCRIPTOR)
    batch = types.Batch(reports=[types.M(id="x"), types.M(id="y")], named={"k": types.M(id="z")})
    owners = sorted(plan.owners(batch))
    assert owners == [(0, b"x"), (0, b"y"), (1, b"z")]
    assert all(scope.cost == Cost.pure(Fraction(1)) for scope in plan.scopes)


def test_a_hidden_choice_costs_its_own_loss_and_the_dearest_member():
    plan = plan_of(
        f"""message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 0.5}};
        double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 2}}]; bool b = 2 [{CAT} = {{epsilon: 1}}]; }} }}"""
    )
    assert plan.cost.epsilon == 2.5 * AMOUNT
    assert [field.payload.domain for field in plan.fields if field.kind.on_oneof] == [("a", "b", "none")]


def test_overlay_replaces_the_annotation_and_says_so():
    body = f"message M {{ string id = 1 {UNIT}; double a = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; }}"
    overlaid = plan_of(
        body, overlay={"fields": {"M.a": {"numeric": {"lower": 0, "upper": 9, "epsilon": 0.5}}}}
    )
    assert [(field.origin, field.epsilon) for field in overlaid.fields if field.mechanism_name] == [
        ("overlay", Fraction(1, 2))
    ]
    assert overlaid.version != plan_of(body).version


def test_unannotated_fields_pass_with_a_finding_or_follow_the_message():
    body = f"message M {{ %s string id = 1 {UNIT}; string note = 2; }}"
    types = compiled(body % "")
    findings = Policy().diagnostics(types.M.DESCRIPTOR)
    assert [(f.severity, f.rule, f.element) for f in findings] == [
        (Severity.WARNING, "unannotated", f"{types.package}.M.note")
    ]
    dropped = plan_of(body % "option (dpmesh.v1.message) = {unannotated: SUPPRESS};")
    assert [str(field.kind) for field in dropped.fields] == ["unit", "suppress"]
    assert error_of(body % "option (dpmesh.v1.message) = {unannotated: REJECT};").rule == "unannotated"


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 0}}];"),
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: -1}}];"),
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: nan}}];"),
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: inf}}];"),
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1e9}}];"),
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 5e-324}}];"),
        ("epsilon", f"double a = 1 [{NUM} = {{lower: 0 upper: 1}}];"),
        ("epsilon", f"bool a = 1 [{CAT} = {{epsilon: 0}}];"),
        ("bounds", f"double a = 1 [{NUM} = {{epsilon: 1}}];"),
        ("bounds", f"double a = 1 [{NUM} = {{lower: 1 upper: 1 epsilon: 1}}];"),
        ("bounds", f"double a = 1 [{NUM} = {{lower: 2 upper: 1 epsilon: 1}}];"),
        ("bounds", f"double a = 1 [{NUM} = {{lower: nan upper: 1 epsilon: 1}}];"),
        ("bounds", f"double a = 1 [{NUM} = {{lower: -1e308 upper: 1e308 epsilon: 1}}];"),
        ("bounds", f"float a = 1 [{NUM} = {{lower: 0 upper: 1e39 epsilon: 1 output: IN_RANGE}}];"),
        ("bounds", f"int32 a = 1 [{NUM} = {{lower: 0 upper: 4e9 epsilon: 1 output: IN_RANGE}}];"),
        ("bounds", f"int32 a = 1 [{NUM} = {{lower: 0 upper: 1.5 epsilon: 1}}];"),
        ("bounds", f"uint32 a = 1 [{NUM} = {{lower: -1 upper: 5 epsilon: 1 output: IN_RANGE}}];"),
        ("resolution", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 resolution: 2}}];"),
        ("resolution", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 resolution: 0}}];"),
        ("resolution", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 resolution: nan}}];"),
        ("resolution", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 resolution: 1e-300}}];"),
        ("resolution", f"double a = 1 [{NUM} = {{lower: 0 upper: 5e-324 epsilon: 1 resolution: 1e-400}}];"),
        ("resolution", f"float a = 1 [{NUM} = {{lower: 1e8 upper: 100001000 resolution: 1 epsilon: 1}}];"),
        (
            "resolution",
            f"double a = 1 [{NUM} = {{lower: 1e17 upper: 100000000000001000 resolution: 1 epsilon: 1}}];",
        ),
        ("resolution", f"int64 a = 1 [{NUM} = {{lower: 0 upper: 100 resolution: 0.5 epsilon: 1}}];"),
        ("output-range", f"uint32 a = 1 [{NUM} = {{lower: 0 upper: 10 epsilon: 1}}];"),
        ("output-range", f"int32 a = 1 [{NUM} = {{lower: -2000000000 upper: 2000000000 epsilon: 1}}];"),
        ("output-range", f"float a = 1 [{NUM} = {{lower: 0 upper: 3e38 epsilon: 0.1}}];"),
        ("kind-type", f"string a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];"),
        ("kind-type", "int64 a = 1 [(dpmesh.v1.field).message_id = {}];"),
        ("kind-type", "repeated string a = 1 [(dpmesh.v1.field).message_id = {}];"),
        ("kind-type", f"map<string, double> a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];"),
        ("kind-type", f"double a = 1 [{CAT} = {{epsilon: 1}}];"),
        ("kind-type", f"bytes a = 1 [{CAT} = {{epsilon: 1}}];"),
        ("kind-type", "double a = 1 [(dpmesh.v1.field).unit = {}];"),
        ("kind-type", "repeated string a = 1 [(dpmesh.v1.field).unit = {}];"),
        ("kind-type", "oneof o { string a = 1 [(dpmesh.v1.field).unit = {}]; string b = 2; }"),
        ("unit-duplicate", f"string a = 1 {UNIT}; string b = 2 {UNIT};"),
        ("max-items", f"repeated double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];"),
        (
            "max-items",
            f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}, (dpmesh.v1.field).max_items = 2];",
        ),
        ("max-items", f"repeated E a = 1; }} message E {{ bool b = 1 [{CAT} = {{epsilon: 1}}];"),
        ("max-items", f"map<string, E> a = 1; }} message E {{ bool b = 1 [{CAT} = {{epsilon: 1}}];"),
        ("domain", f"string a = 1 [{CAT} = {{epsilon: 1}}];"),
        ("domain", f'string a = 1 [{CAT} = {{epsilon: 1 domain: ["x"]}}];'),
        ("domain", f'string a = 1 [{CAT} = {{epsilon: 1 domain: ["x", "x"]}}];'),
        ("domain", f'int32 a = 1 [{CAT} = {{epsilon: 1 domain: ["1", "x"]}}];'),
        ("domain", f'uint32 a = 1 [{CAT} = {{epsilon: 1 domain: ["1", "-1"]}}];'),
        ("domain", f'bool a = 1 [{CAT} = {{epsilon: 1 domain: ["true"]}}];'),
        (
            "mechanism",
            f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: PIECEWISE output: IN_RANGE}}];",
        ),
        (
            "mechanism",
            f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DUCHI sensitivity: 1}}];",
        ),
        ("sensitivity", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 sensitivity: 0}}];"),
        ("sensitivity", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 sensitivity: inf}}];"),
        ("delta", f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_GAUSSIAN}}];"),
        (
            "delta",
            f"double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_LAPLACE}}];",
        ),
        (
            "oneof-choice",
            f"oneof o {{ bool a = 1 [{CAT} = {{epsilon: 1}}]; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}",
        ),
        (
            "oneof-choice",
            f"oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; bool a = 1 [{CAT} = {{epsilon: 1}}]; string b = 2; }}",
        ),
        (
            "oneof-choice",
            f"oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; bool a = 1 [{CAT} = {{epsilon: 1}}]; double b = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 nan: REJECT}}]; }}",
        ),
        ("recursive", f"bool a = 1 [{CAT} = {{epsilon: 1}}]; M m = 2;"),
        ("recursive", f"bool a = 1 [{CAT} = {{epsilon: 1}}]; map<string, M> m = 2;"),
        ("location", "M a = 1 [(dpmesh.v1.field).location = {epsilon_per_km: 0.1}];"),
        ("step", "int64 a = 1 [(dpmesh.v1.field).time = {}];"),
        ("bounds", "repeated double a = 1 [(dpmesh.v1.field).vector = {}];"),
        ("keys", "map<string, double> a = 1 [(dpmesh.v1.field).histogram = {epsilon: 1}];"),
        ("kind-type", "double a = 1 [(dpmesh.v1.field).pseudonym = {}];"),
        ("kind-type", "map<string, string> a = 1 [(dpmesh.v1.field).pseudonym = {}];"),
        ("max-items", "repeated string a = 1 [(dpmesh.v1.field).pseudonym = {}];"),
        ("epoch", "string a = 1 [(dpmesh.v1.field).pseudonym = {epoch: {}}];"),
        ("epoch", "string a = 1 [(dpmesh.v1.field).pseudonym = {epoch: {seconds: -1}}];"),
        ("epoch", "string a = 1 [(dpmesh.v1.field).pseudonym = {epoch: {nanos: 999999999}}];"),
        ("epoch", "string a = 1 [(dpmesh.v1.field).unit = {epoch: {seconds: -1}}];"),
        ("epoch", "string a = 1 [(dpmesh.v1.field).unit = {epoch: {seconds: 400000000000}}];"),
        (
            "max-items",
            "repeated string a = 1 [(dpmesh.v1.field) = {public: {} max_items: 1}]; string b = 2 [(dpmesh.v1.field).suppress = {}];",
        ),
        ("field-name", f"bool HasField = 1 [{CAT} = {{epsilon: 1}}];"),
        (
            "oneof-choice",
            f"bool z = 9 [{CAT} = {{epsilon: 1}}]; oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; string a = 1; string b = 2; }}",
        ),
        (
            "oneof-choice",
            f"oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; bool a = 1 [{CAT} = {{epsilon: 1}}]; }}",
        ),
        (
            "oneof-choice",
            f"oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 1 public: true}}; bool a = 1 [{CAT} = {{epsilon: 1}}]; bool b = 2; }}",
        ),
    ],
)
def test_every_bad_rule_is_refused_and_named(rule, field):
    error = error_of(f"message M {{ {field} }}")
    assert error.rule == rule
    assert error.element.split(".", 1)[1].startswith("M") or ".E" in error.element


def test_all_problems_of_a_message_are_found_at_once():
    types = compiled(
        f"""message M {{ double a = 1 [{NUM} = {{lower: 2 upper: 1 epsilon: 1}}];
        uint32 b = 2 [{NUM} = {{lower: 0 upper: 10 epsilon: 1}}]; bool c = 3 [{CAT} = {{epsilon: -1}}]; }}"""
    )
    rules = [problem.rule for problem in Policy().diagnostics(types.M.DESCRIPTOR)]
    assert rules == ["bounds", "output-range", "epsilon"]


def test_a_newer_schemas_annotation_is_refused_not_ignored():
    types = compiled("message M { double a = 1; }")
    rules = Policy(parse({"fields": {f"{types.package}.M.a": {"suppress": {}}}}, "test")).rules.overlay
    rules.fields[f"{types.package}.M.a"].MergeFromString(
        b"\xa2\x06\x00"
    )  # field 100, which no schema has yet
    with pytest.raises(AnnotationError, match="newer-schema"):
        Policy(rules).plan(types.M.DESCRIPTOR)


def test_two_versions_of_one_type_each_follow_their_own_annotations():
    loud = compiled(f"message M {{ bool b = 1 [{CAT} = {{epsilon: 1}}]; }}")
    quiet = compiled(f"message M {{ bool b = 1 [{CAT} = {{epsilon: 2}}]; }}")
    policy = Policy()
    assert policy.plan(loud.M.DESCRIPTOR).cost.epsilon == AMOUNT
    assert policy.plan(quiet.M.DESCRIPTOR).cost.epsilon == 2 * AMOUNT


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"feilds": {}}, "feilds"),
        ({"fields": {"a.b": {"numerik": {}}}}, "numerik"),
        ({"fields": {"a.b": {"numeric": {"lower": "x"}}}}, "lower"),
        (["fields"], "mapping"),
    ],
)
def test_a_policy_file_that_does_not_fit_the_schema_is_refused_by_key(document, words):
    with pytest.raises(ConfigError, match=words):
        parse(document, "policy.yaml")


def test_policy_files_are_read_from_yaml_and_json(tmp_path):
    types = compiled("message M { double a = 1; }")
    name = f"{types.package}.M.a"
    (tmp_path / "p.yaml").write_text(
        f"fields:\n  {name}: {{numeric: {{lower: 0, upper: 2, epsilon: 0.5}}}}\n"
    )
    (tmp_path / "p.json").write_text(
        f'{{"fields": {{"{name}": {{"numeric": {{"lower": 0, "upper": 2, "epsilon": 0.5}}}}}}}}'
    )
    one, other = Policy(tmp_path / "p.yaml"), Policy(tmp_path / "p.json")
    assert one.digest == other.digest != Policy().digest
    assert one.plan(types.M.DESCRIPTOR).cost.epsilon == AMOUNT // 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fields: {a: {public: {}}, a: {suppress: {}}}", "twice: a"),
        ("fields: [", "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_a_broken_policy_file_is_refused(tmp_path, text, words):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Policy(tmp_path / "p.yaml")


def test_a_missing_policy_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        Policy(tmp_path / "none.yaml")


def test_rules_that_protect_nothing_are_refused():
    """A type that would leave as it is, though somebody gave it a privacy loss."""
    idle = [
        "message M { option (dpmesh.v1.message) = {epsilon: 1}; double a = 1; }",
        "message M { repeated double a = 1 [(dpmesh.v1.field).max_items = 3]; }",
        "message M { oneof o { option (dpmesh.v1.oneof).epsilon = 1; bool a = 1; bool b = 2; } }",
        "message M { option (dpmesh.v1.message) = {epsilon: 1 unannotated: SUPPRESS};"
        " double a = 1 [(dpmesh.v1.field).public = {}]; }",
    ]
    assert [error_of(body).rule for body in idle] == ["epsilon", "max-items", "oneof-choice", "epsilon"]


def test_overlay_names_that_no_rule_is_looked_up_under_are_stray():
    types = compiled("message M { map<string, double> m = 1; }")
    rules = {
        "fields": {f"{types.package}.M.MEntry.value": {"suppress": {}}},
        "methods": {
            "grpc.reflection.v1.ServerReflection.ServerReflectionInfo": {"require": True},
            "/grpc.health.v1/Health.Check": {"require": True},
            "/grpc/health.v1.Health.Check": {"require": True},
        },
    }
    assert takes_rules("methods", "/grpc.health.v1.Health/Check", descriptor_pool.Default())
    assert len(Policy(parse(rules, "test")).unresolved_overlays()) == 4


@pytest.mark.parametrize(
    "name",
    ["/dpmesh.v1/IssuerService.Enrol", "/dpmesh/v1.IssuerService/Enrol", "//dpmesh.v1.IssuerService/Enrol"],
)
def test_other_spellings_of_a_method_are_stray(name: str):
    right = "/dpmesh.v1.IssuerService/Enrol"
    assert identity_pb2.DESCRIPTOR.services_by_name["IssuerService"].methods_by_name["Enrol"]
    policy = Policy(parse({"methods": {each: {"require": True} for each in (right, name)}}, "test"))
    assert policy.unresolved_overlays() == [name]
    assert policy.labels(name) == frozenset()


def test_stray_overlays_are_named():
    types = compiled("message M { double a = 1; oneof o { bool x = 2; bool y = 3; } }")
    good = {f"{types.package}.M.a": {"suppress": {}}}
    policy = Policy(
        parse(
            {
                "fields": {**good, "no.such.field": {"suppress": {}}},
                "methods": {"/no.S/M": {"require": True}},
            },
            "test",
        )
    )
    assert policy.unresolved_overlays() == ["/no.S/M", "no.such.field"]


@pytest.mark.parametrize(
    "body",
    [
        "message M { required string a = 1 [(dpmesh.v1.field).suppress = {}]; }",
        "message M { option (dpmesh.v1.message).unannotated = SUPPRESS; required string a = 1; }",
        f"message M {{ optional E e = 1; }} message E {{ required string a = 1; optional bool b = 2 [{CAT} = {{epsilon: 1}}]; }}",
        f"""message M {{ repeated E e = 1 [(dpmesh.v1.field).max_items = 2]; }}
        message E {{ required string a = 1; optional bool b = 2 [{CAT} = {{epsilon: 1}}]; }}""",
        f"""message M {{ oneof o {{ option (dpmesh.v1.oneof).epsilon = 1; bool b = 2 [{CAT} = {{epsilon: 1}}];
        E e = 1 [(dpmesh.v1.field).suppress = {{}}]; }} }} message E {{ required string a = 1; }}""",
    ],
)
def test_a_required_field_that_would_leave_empty_is_refused(body):
    assert error_of(body, syntax="proto2").rule == "required"


def test_required_fields_that_are_protected_or_as_present_as_their_message_are_fine():
    body = f"""message M {{ required string p = 1; required bool b = 2 [{CAT} = {{epsilon: 1}}]; repeated R r = 3; }}
    message R {{ required string id = 1 {UNIT}; required string a = 2; }}"""
    assert plan_of(body, syntax="proto2") is not None


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("double", "lower: 0 upper: 10.3 resolution: 1 sensitivity: 0.9"),
        ("double", "lower: 0 upper: 10.6 resolution: 1 sensitivity: 1.2"),
        ("double", "lower: 0 upper: 1 resolution: 1e-12 sensitivity: 2.9999999e-12"),
        ("double", "lower: 0 upper: 700 resolution: 0.7 sensitivity: 2.1"),
        ("int64", "lower: 0 upper: 13 resolution: 10 sensitivity: 9"),
        ("int64", "lower: -7 upper: 20 resolution: 5 sensitivity: 6"),
        ("int64", "lower: 0 upper: 20 resolution: 5 sensitivity: 5"),
    ],
)
def test_no_two_values_within_the_sensitivity_are_further_apart_on_the_grid_than_it_says(field, rule):
    """The worst neighbours are found among values beside every rounding boundary near both ends and in between."""
    plan = plan_of(f"message M {{ {field} a = 1 [{NUM} = {{{rule} epsilon: 1}}]; }}")
    grid, mechanism = plan.fields[0].payload.grid, plan.fields[0].payload.mechanism
    declared = Fraction(float(rule.partition("sensitivity: ")[2]))
    whole = field == "int64"
    starts = range(int(grid.lower), int(grid.upper) + 1) if whole else _boundaries(grid)
    worst = 0
    for start in starts:
        end = start + int(declared) if whole else start + float(declared)
        while Fraction(end) - Fraction(start) > declared:
            end = math.nextafter(end, -math.inf)
        worst = max(worst, grid.index(min(end, grid.upper)) - grid.index(start))
    # exp(-1/scale) is the ratio of neighbouring outcomes; the scale is the steps that the mechanism hides.
    hidden = next(steps for steps in range(1, 9) if mechanism.worst_variance < _laplace_variance(steps + 0.5))
    assert worst <= hidden <= worst + 1


def _boundaries(grid):
    picked = {*range(min(grid.size, 20)), *range(max(0, grid.size - 20), grid.size)}
    picked |= {grid.size * part // 997 for part in range(997)}
    for index in picked:
        edge = grid.lower + (index + 0.5) * grid.step
        yield from (math.nextafter(edge, -math.inf), edge, edge - grid.step / 1000)


def _laplace_variance(scale):
    return 0.5 / math.sinh(0.5 / scale) ** 2


def test_a_grid_ends_at_the_point_nearest_to_the_upper_bound():
    grids = [
        plan_of(f"message M {{ {field} a = 1 [{NUM} = {{{rule} epsilon: 1}}]; }}").fields[0].payload.grid
        for field, rule in (
            ("double", "lower: 0 upper: 10.3 resolution: 1"),
            ("double", "lower: 0 upper: 10.5 resolution: 1"),
            ("int64", "lower: 0 upper: 13 resolution: 10"),
            ("int64", "lower: 0 upper: 15 resolution: 10"),
        )
    ]
    assert [grid.size for grid in grids] == [10, 11, 1, 2]
    assert all(grid.index(grid.upper) == grid.size for grid in grids)


def test_public_over_rules_and_elements_that_show_their_number_are_found():
    types = compiled(
        f"""message M {{ N n = 1 [(dpmesh.v1.field).public = {{}}]; repeated E e = 2 [(dpmesh.v1.field).max_items = 2]; }}
        message N {{ string s = 1 [(dpmesh.v1.field).suppress = {{}}]; }}
        message E {{ string a = 1 [(dpmesh.v1.field).public = {{}}]; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}"""
    )
    found = {(f.severity, f.rule, f.element) for f in Policy().diagnostics(types.M.DESCRIPTOR)}
    assert found == {
        (Severity.WARNING, "public", f"{types.package}.M.n"),
        (Severity.WARNING, "length-shown", f"{types.package}.M.e"),
    }


def test_rules_for_a_maps_entries_are_stray():
    types = compiled(
        f"message M {{ map<string, double> m = 1; bool b = 2 [{CAT} = {{epsilon: 1}}]; }} message N {{ map<string, double> m = 1; }}"
    )
    field, message = f"{types.package}.M.MEntry.value", f"{types.package}.N.MEntry"
    policy = Policy(
        parse(
            {"fields": {field: {"suppress": {}}}, "messages": {message: {"unannotated": "SUPPRESS"}}}, "test"
        )
    )
    assert policy.unresolved_overlays() == sorted([field, message])
    assert policy.plan(types.M.DESCRIPTOR) is not None
    assert policy.plan(types.N.DESCRIPTOR) is None


def test_an_overlay_on_a_wrapper_holds():
    types = compiled("message M { google.protobuf.StringValue w = 1; }")
    policy = Policy(parse({"fields": {"google.protobuf.StringValue.value": {"suppress": {}}}}, "test"))
    out = policy.plan(types.M.DESCRIPTOR).protect(types.M(w={"value": "secret"}), lambda *_: b"")
    assert out == types.M(w={})


def test_the_default_grid_is_no_finer_than_the_field_can_hold():
    plan = plan_of(f"message M {{ float a = 1 [{NUM} = {{lower: 1e8 upper: 100001000 epsilon: 1}}]; }}")
    assert plan.fields[0].payload.grid.step == 8


def test_values_beside_a_deeper_unit_are_found_and_refused_where_their_presence_would_show():
    body = f"""message M {{ Row one = 1; repeated Row many = 2 [(dpmesh.v1.field).max_items = 3]; }}
    message Row {{ Head head = 1; bool b = 2 [{CAT} = {{epsilon: 1}}]; }} message Head {{ string id = 1 {UNIT}; }}"""
    error = error_of(body)
    assert (error.rule, error.element.rpartition(".")[2]) == ("unit-deeper", "Row")
    findings = Policy().diagnostics(compiled(body).Row.DESCRIPTOR)
    assert [(f.severity, f.rule) for f in findings] == [(Severity.WARNING, "unit-deeper")]


def test_a_rule_that_can_not_be_read_hides_no_other_error():
    body = """message M { bool a = 1 [(dpmesh.v1.field) = {}]; bool b = 2 [(dpmesh.v1.field).numeric = {epsilon: 1}];
        string c = 3 [(dpmesh.v1.field) = {}]; bool d = 4 [(dpmesh.v1.field).categorical = {epsilon: -1}]; }"""
    found = Policy().diagnostics(compiled(body).M.DESCRIPTOR)
    assert {(entry.element[-1], entry.rule) for entry in found} == {
        ("a", "empty-rule"),
        ("b", "kind-type"),
        ("c", "empty-rule"),
        ("d", "epsilon"),
    }
