"""A kind that replaces one of the product works everywhere, because one class says all that it is."""

import json
from dataclasses import replace
from datetime import datetime

import pytest

import dpmesh
from dpmesh import cli
from dpmesh.accounting import AMOUNT, Cost
from dpmesh.errors import AnnotationError, BudgetExhaustedError
from dpmesh.estimate import EstimateError, Reader
from dpmesh.noise import numeric
from dpmesh.policy import Grid, Model, Policy
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.kinds import time
from dpmesh.policy.kinds.kind import Description, FieldKind
from dpmesh.policy.kinds.loss import field_epsilon
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.kinds.numeric import Numeric, NumericPayload
from dpmesh.policy.kinds.registry import kind_of, registered
from dpmesh.v1 import privacy_pb2 as pb
from tests.support.protos import compiled

ALMOST_SURE = 1 - 1e-9
CONFIG = """
[ledger]
url = "memory:"

[[budget]]
name = "daily"
key = "unit"
epsilon = 60.0
accounting = "pure"

[[budget]]
name = "all"
key = "global"
epsilon = 60.0
accounting = "pure"
"""


class Time(Numeric):
    """A point in time, in whole steps since 1970."""

    name = "time"

    def plan(self, site, rules):
        length = {pb.Time.HOUR: 3600, pb.Time.DAY: 86_400}[rules.step]
        lower, upper = (
            datetime.fromisoformat(text).timestamp() // length for text in (rules.earliest, rules.latest)
        )
        number = pb.Numeric(lower=lower, upper=upper, resolution=1)
        if rules.HasField("epsilon"):
            number.epsilon = rules.epsilon
        return super().plan(site, number)

    def describe(self, plan):
        return replace(
            super().describe(plan), output=f"one of {plan.payload.grid.size + 1} steps, with noise"
        )


DAYS = (
    '(dpmesh.v1.field).time = {earliest: "2026-01-01T00:00:00Z" latest: "2026-01-31T00:00:00Z" step: DAY %s}'
)
FIRST = 20_454  # 2026-01-01 in days since 1970.
VISIT = f"""message Visit {{
    option (dpmesh.v1.message) = {{epsilon: 20}};
    string id = 1 [(dpmesh.v1.field).unit = {{}}];
    int64 day = 2 [{DAYS % ""}];
    repeated int64 days = 3 [{DAYS % "epsilon: 10"}, (dpmesh.v1.field).max_items = 2];
}}"""


def test_a_time_is_annotated_compiled_and_shares_its_messages_epsilon():
    types = compiled(VISIT)
    with registered(Time()):
        plan = Policy().plan(types.Visit.DESCRIPTOR)
    _, day, days = plan.fields
    assert (str(day.kind), day.epsilon, day.payload.grid) == (
        "time",
        20,
        Grid(FIRST, FIRST + 30, 1, 30, True),
    )
    assert (str(days.kind), days.epsilon, days.repeats) == ("time", 10, 2)
    assert [(scope.path, scope.cost.epsilon) for scope in plan.scopes] == [("id", 30 * AMOUNT)]


def test_a_time_is_shown_by_dpmesh_plan(tmp_path, capsys):
    path, config = tmp_path / "visit.proto", tmp_path / "dpmesh.toml"
    path.write_text(f'syntax = "proto3";\npackage acme;\nimport "dpmesh/v1/privacy.proto";\n{VISIT}')
    config.write_text(CONFIG)
    with registered(Time()):
        assert cli.run(["plan", str(path), "--config", str(config)]) == 0
        text = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert cli.run(["plan", str(path), "--config", str(config), "--json"]) == 0
        (message,) = json.loads(capsys.readouterr().out)["messages"]
        assert cli.run(["check", str(path)]) == 0
    (line,) = [line for line in text if line.startswith("day ")]
    assert line.startswith("day time ")
    assert line.endswith("one of 31 steps, with noise annotation")
    _, day, days = message["fields"]
    assert (day["kind"], day["epsilon"], day["model"], day["elements"]) == ("time", 20.0, "local", 1)
    assert day["low"] <= FIRST
    assert day["high"] >= FIRST + 30
    assert 0 < day["error"] < 30
    assert (days["output"], days["elements"]) == ("one of 31 steps, with noise", 2)
    assert message["payments"][0]["messages"] == 2


async def test_a_time_is_charged_released_and_estimated():
    types = compiled(VISIT)
    settings = {"ledger": {"url": "memory:"}, "budget": [unit_budget(60.0)]}
    with registered(Time()):
        received = []
        async with dpmesh.open(settings) as mesh:
            for number in range(200):
                visit = types.Visit(id=f"u{number // 2}", day=FIRST + number % 10, days=[FIRST, FIRST + 30])
                receipt = await mesh.release(visit)
                assert receipt.epsilon == 30.0
                received.append(receipt.message)
            await mesh.swap(Policy())  # Compiles what was released, and tests its mechanisms.
            with pytest.raises(BudgetExhaustedError):
                await mesh.release(types.Visit(id="u7"))
        reader = Reader(types.Visit)
    mean = reader.mean("day", received, confidence=ALMOST_SURE)
    assert mean.n == 200
    assert mean.covers(FIRST + 4.5)
    assert mean.margin < 5
    assert reader.mean("days", received, confidence=ALMOST_SURE).covers(FIRST + 15)
    with pytest.raises(EstimateError, match="is time, not categorical"):
        reader.frequencies("day", received)


def unit_budget(epsilon):
    return {"name": "daily", "key": "unit", "epsilon": epsilon, "accounting": "pure", "window": "24h"}


class Location(NoisedKind):
    """Both coordinates of a message, on one grid of a tenth of a degree, each with half of the loss."""

    name = "location"
    elementwise = False

    def plan(self, site, rules):
        epsilon = field_epsilon(rules, site.share)
        grid = Grid(-180.0, 180.0, 0.1, 3600, False)
        laplace = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, grid.size, grid.size, epsilon / 2)
        return self.noised_plan(
            site,
            model=Model.LOCAL,
            epsilon=epsilon,
            cost=Cost.pure(epsilon),
            mechanism_name=str(laplace.kind),
            payload=NumericPayload(grid, laplace),
        )

    def step(self, site, plan):
        name, grid, draw = site.field.name, plan.payload.grid, draw_function(plan.payload.mechanism.draws)

        def step(source, target, pseudonymise):
            at, to = getattr(source, name), getattr(target, name)
            to.latitude = grid.value(draw(grid.index(at.latitude)))
            to.longitude = grid.value(draw(grid.index(at.longitude)))

        return step

    def describe(self, plan):
        return Description("a point, with noise", error=plan.payload.deviation)

    def reading(self, plan):
        return plan.payload

    def received(self, value):
        return (value.latitude, value.longitude)


async def test_a_location_stands_on_a_message_which_is_not_descended_into():
    types = compiled(
        """message Point { double latitude = 1; double longitude = 2; string name = 3; }
        message Stop { string id = 1 [(dpmesh.v1.field).unit = {}];
        Point at = 2 [(dpmesh.v1.field).location = {epsilon: 60}]; }"""
    )
    point = types.Point(latitude=47.4, longitude=47.4, name="home")
    settings = {"ledger": {"url": "memory:"}, "budget": [unit_budget(60.0)]}
    with registered(Location()):
        async with dpmesh.open(settings) as mesh:
            stops = [(await mesh.release(types.Stop(id=f"u{n}", at=point))).message for n in range(100)]
        reader = Reader(types.Stop)
    assert [(entry.path, str(entry.kind)) for entry in reader.plan.fields] == [
        ("id", "unit"),
        ("at", "location"),
    ]
    assert all(stop.at.name == "" for stop in stops)
    mean = reader.mean("at", stops, confidence=ALMOST_SURE)
    assert mean.n == 200
    assert mean.covers(47.4)
    assert mean.margin < 20


class Histogram(NoisedKind):
    """The numbers of a map's public keys, all of which leave."""

    name = "histogram"
    elementwise = False

    def plan(self, site, rules):
        epsilon = field_epsilon(rules, site.share)
        grid = Grid(0, 1000, 1, 1000, True)
        laplace = numeric.make(
            numeric.NumericKind.DISCRETE_LAPLACE, grid.size, int(rules.contribution), epsilon
        )
        return self.noised_plan(
            site,
            model=Model.CENTRAL,
            epsilon=epsilon,
            cost=Cost.pure(epsilon),
            mechanism_name=str(laplace.kind),
            payload=(tuple(rules.keys), NumericPayload(grid, laplace)),
        )

    def step(self, site, plan):
        keys, number = plan.payload
        name, grid, draw = site.field.name, number.grid, draw_function(number.mechanism.draws)

        def step(source, target, pseudonymise):
            counts, shown = getattr(source, name), getattr(target, name)
            for key in keys:
                shown[key] = grid.value(draw(grid.index(counts.get(key, 0))))

        return step

    def describe(self, plan):
        keys, number = plan.payload
        return Description(f"{len(keys)} counts, with noise", error=number.deviation)

    def reading(self, plan):
        return plan.payload[1]

    def received(self, value):
        return value.values()


async def test_a_histogram_stands_on_a_map_of_which_only_its_keys_leave():
    types = compiled(
        """message Day { map<string, int64> visits = 1
        [(dpmesh.v1.field).histogram = {keys: ["a", "b"] contribution: 1 epsilon: 1}]; }"""
    )
    budget = {**unit_budget(100.0), "key": "global"}
    with registered(Histogram()):
        async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [budget]}) as mesh:
            receipts = [await mesh.release(types.Day(visits={"a": 100, "secret": 7})) for _ in range(100)]
            with pytest.raises(BudgetExhaustedError):
                await mesh.release(types.Day(visits={"a": 100}))
        reader = Reader(types.Day)
    days = [receipt.message for receipt in receipts]
    assert {receipt.epsilon for receipt in receipts} == {1.0}
    assert all(sorted(day.visits) == ["a", "b"] for day in days)
    mean = reader.mean("visits", days, confidence=ALMOST_SURE)
    assert mean.n == 200
    assert mean.covers(50)


def test_a_kind_is_there_only_while_it_is_registered():
    types = compiled(VISIT)
    with registered(Time()):
        assert type(Policy().plan(types.Visit.DESCRIPTOR).fields[1].kind) is Time
    assert type(Policy().plan(types.Visit.DESCRIPTOR).fields[1].kind) is time.Time


def test_a_kind_that_draws_noise_and_costs_nothing_is_refused():
    class Free(Time):
        def plan(self, site, rules):
            return replace(super().plan(site, rules), cost=Cost.ZERO)

    types = compiled(VISIT)
    with registered(Free()), pytest.raises(AnnotationError, match="draws noise and costs nothing"):
        Policy().plan(types.Visit.DESCRIPTOR)


def test_a_kind_without_a_name_in_the_schema_is_refused():
    class Colour(Time):
        name = "colour"

    with pytest.raises(ValueError, match="no kind 'colour'"), registered(Colour()):
        pass


@pytest.mark.parametrize(
    "field", pb.FieldRules.DESCRIPTOR.oneofs_by_name["kind"].fields[:], ids=lambda field: field.name
)
def test_every_kind_of_the_schema_has_its_name(field):
    rules = pb.FieldRules()
    getattr(rules, field.name).SetInParent()
    kind = kind_of(rules)
    assert isinstance(kind, FieldKind)
    assert str(kind) == kind.name == field.name
    assert not isinstance(kind, NoisedKind) or "epsilon" in field.message_type.fields_by_name


def test_rules_without_a_kind_have_none():
    assert kind_of(pb.FieldRules(max_items=3)) is None
