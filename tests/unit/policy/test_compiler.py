"""What the compiler makes of annotations: costs, scopes, and every rule it refuses."""

from fractions import Fraction

import pytest

from dpmesh.accounting import AMOUNT, Cost
from dpmesh.errors import AnnotationError, ConfigError
from dpmesh.policy import Kind, Model, Policy, Severity
from dpmesh.policy.overlay import parse
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
    epsilons = {field.path: field.epsilon for field in plan.fields if field.mechanism}
    assert epsilons == {"a": Fraction(1), "b": Fraction(1), "c": Fraction(1, 2)}
    assert plan.cost.epsilon == 2.5 * AMOUNT
    assert [(scope.path, scope.cost) for scope in plan.scopes] == [("id", plan.cost)]


def test_thirds_of_an_epsilon_never_cost_more_than_the_whole():
    fields = " ".join(f"bool b{n} = {n} [{CAT} = {{}}];" for n in (1, 2, 3))
    shared = plan_of(f"message M {{ option (dpmesh.v1.message) = {{epsilon: 2}}; {fields} }}")
    repeated = plan_of(f"message M {{ repeated bool b = 1 [{CAT} = {{epsilon: 2}}, (dpmesh.v1.field).max_items = 3]; }}")
    for plan in (shared, repeated):
        assert 2 * AMOUNT - 3 <= plan.cost.epsilon <= 2 * AMOUNT


def test_central_costs_go_to_no_unit():
    plan = plan_of(
        f"""message M {{ string id = 1 {UNIT};
        double own = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];
        double all = 3 [{NUM} = {{lower: 0 upper: 1000 epsilon: 0.25 sensitivity: 3}}]; }}"""
    )
    assert [(scope.path, scope.cost.epsilon) for scope in plan.scopes] == [("id", AMOUNT), ("", AMOUNT // 4)]
    assert [field.model for field in plan.fields if field.mechanism] == [Model.LOCAL, Model.CENTRAL]


def test_repeated_scalars_share_their_field_and_repeated_messages_multiply():
    plan = plan_of(
        f"""message M {{ repeated double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}, (dpmesh.v1.field).max_items = 4];
        repeated E e = 2 [(dpmesh.v1.field).max_items = 3]; }}
        message E {{ bool b = 1 [{CAT} = {{epsilon: 0.5}}]; }}"""
    )
    assert plan.cost.epsilon == AMOUNT + 3 * AMOUNT // 2
    by_path = {field.path: field for field in plan.fields}
    assert by_path["a"].repeats == 4
    assert by_path["a"].mechanism.epsilon == Fraction(1, 4)
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
    assert [field.domain for field in plan.fields if field.kind is Kind.ONEOF] == [("a", "b", "none")]


def test_overlay_replaces_the_annotation_and_says_so():
    body = f"message M {{ string id = 1 {UNIT}; double a = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; }}"
    overlaid = plan_of(
        body, overlay={"fields": {"M.a": {"numeric": {"lower": 0, "upper": 9, "epsilon": 0.5}}}}
    )
    assert [(field.origin, field.epsilon) for field in overlaid.fields if field.mechanism] == [
        ("overlay", Fraction(1, 2))
    ]
    assert overlaid.version != plan_of(body).version


def test_unannotated_fields_pass_with_a_finding_or_follow_the_message():
    body = f"message M {{ %s string id = 1 {UNIT}; string note = 2; }}"
    types = compiled(body % "")
    findings = Policy().problems(types.M.DESCRIPTOR)
    assert [(f.severity, f.rule, f.element) for f in findings] == [
        (Severity.WARNING, "unannotated", f"{types.package}.M.note")
    ]
    dropped = plan_of(body % "option (dpmesh.v1.message) = {unannotated: SUPPRESS};")
    assert [field.kind for field in dropped.fields] == [Kind.UNIT, Kind.SUPPRESS]
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
        ("resolution", f"double a = 1 [{NUM} = {{lower: 0 upper: 5e-324 epsilon: 1}}];"),
        ("output-range", f"uint32 a = 1 [{NUM} = {{lower: 0 upper: 10 epsilon: 1}}];"),
        ("output-range", f"int32 a = 1 [{NUM} = {{lower: -2000000000 upper: 2000000000 epsilon: 1}}];"),
        ("output-range", f"float a = 1 [{NUM} = {{lower: 0 upper: 3e38 epsilon: 0.1}}];"),
        ("kind-type", f"string a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];"),
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
        ("recursive", f"bool a = 1 [{CAT} = {{epsilon: 1}}]; M m = 2;"),
        ("recursive", f"bool a = 1 [{CAT} = {{epsilon: 1}}]; map<string, M> m = 2;"),
        ("kind-not-available", "M a = 1 [(dpmesh.v1.field).location = {epsilon_per_km: 0.1}];"),
        ("kind-not-available", "int64 a = 1 [(dpmesh.v1.field).time = {}];"),
        ("kind-not-available", "repeated double a = 1 [(dpmesh.v1.field).vector = {}];"),
        ("kind-not-available", "map<string, double> a = 1 [(dpmesh.v1.field).histogram = {}];"),
        ("kind-not-available", "string a = 1 [(dpmesh.v1.field).pseudonym = {}];"),
        ("kind-not-available", f"bool a = 1 [{CAT} = {{epsilon: 1 mechanism: SUBSET_SELECTION}}];"),
        ("epoch", "string a = 1 [(dpmesh.v1.field).unit = {epoch: {seconds: -1}}];"),
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
    rules = [problem.rule for problem in Policy().problems(types.M.DESCRIPTOR)]
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
    ]
    assert [error_of(body).rule for body in idle] == ["epsilon", "max-items", "oneof-choice"]


def test_overlay_names_that_no_rule_is_looked_up_under_are_stray():
    types = compiled("message M { map<string, double> m = 1; }")
    rules = {
        "fields": {f"{types.package}.M.MEntry.value": {"suppress": {}}},
        "methods": {"grpc.reflection.v1.ServerReflection.ServerReflectionInfo": {"require": True}},
    }
    assert len(Policy(parse(rules, "test")).stray()) == 2


def test_stray_overlays_are_named():
    types = compiled("message M { double a = 1; oneof o { bool x = 2; bool y = 3; } }")
    good = {f"{types.package}.M.a": {"suppress": {}}}
    policy = Policy(
        parse({"fields": {**good, "no.such.field": {"suppress": {}}}, "methods": {"/no.S/M": {}}}, "test")
    )
    assert policy.stray() == ["/no.S/M", "no.such.field"]
