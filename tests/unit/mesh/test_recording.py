"""What spans and metrics say of releases: of single messages, of streams, and of refusals."""

import asyncio
import gc

import pytest
from google.protobuf import any_pb2
from opentelemetry import trace

import dpmesh
from dpmesh.errors import BudgetExhaustedError, DpmeshError
from tests.support.listening import Listening
from tests.support.protos import compiled

CAT = "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""message Report {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 [{CAT} = {{epsilon: 1}}]; }}
    service Reports {{ rpc Send(Report) returns (Report); }}"""
)
METHOD = f"/{TYPES.package}.Reports/Send"
BUDGET = {"name": "unit-day", "epsilon": 6.0, "accounting": "pure", "window": "24h"}


@pytest.fixture
def sdk(monkeypatch):
    """Spans and metrics of the global providers."""
    listening = Listening(monkeypatch)
    listening.trace()
    return listening.spans, listening.meter()


def counted(reader):
    """(decision, budget) -> (releases, epsilon) of METHOD, and how many durations were recorded."""
    found, durations = {}, 0
    for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                if metric.name == "dpmesh.release.duration":
                    durations += point.count
                    continue
                if metric.name not in ("dpmesh.releases", "dpmesh.privacy.loss"):
                    continue
                key = (point.attributes["decision"], point.attributes["budget"])
                found.setdefault(key, {})[metric.name] = point.value
    return {
        key: (v.get("dpmesh.releases", 0), v.get("dpmesh.privacy.loss", 0)) for key, v in found.items()
    }, durations


async def test_each_message_has_a_span_with_its_cost_and_its_budget(sdk):
    exporter, reader = sdk
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        for _ in range(6):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD)
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD)
        counts, _ = counted(reader)
    spans = [dict(span.attributes) for span in exporter.get_finished_spans()]
    assert [span["dpmesh.budget.state"] for span in spans] == ["ok"] * 4 + ["low"] * 2 + ["exhausted"]
    assert [span["dpmesh.decision"] for span in spans] == ["released"] * 6 + ["refused"]
    assert (spans[0]["dpmesh.epsilon"], spans[0]["dpmesh.budget.spent"], spans[0]["dpmesh.budget.cap"]) == (
        1,
        1,
        6,
    )
    assert spans[0]["rpc.method"] == METHOD
    assert len({span["dpmesh.unit"] for span in spans[:6]}) == 1
    assert "N1" not in str(spans)
    assert counts[("released", "unit-day")] == (6, 6.0)
    assert counts[("refused", "unit-day")][0] == 1


async def test_a_stream_has_one_span_with_the_sum_and_an_event_when_the_state_changes(sdk):
    exporter, reader = sdk
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        stream = mesh.stream(method=METHOD)
        for _ in range(6):
            await stream.release(TYPES.Report(id="N1"))
        assert exporter.get_finished_spans() == ()
        with pytest.raises(BudgetExhaustedError):
            await stream.release(TYPES.Report(id="N1"))
        stream.close()
        stream.close()
        counts, durations = counted(reader)
    (span,) = exporter.get_finished_spans()
    assert (span.attributes["dpmesh.messages.count"], span.attributes["dpmesh.epsilon"]) == (6, 6.0)
    assert (span.attributes["dpmesh.decision"], span.attributes["dpmesh.budget.state"]) == (
        "refused",
        "exhausted",
    )
    assert [event.attributes["dpmesh.budget.state"] for event in span.events] == ["low", "exhausted"]
    assert counts[("released", "unit-day")] == (6, 6.0)
    assert counts[("refused", "unit-day")][0] == 1
    assert durations == 2, "a stream's messages are recorded together"


async def test_a_finished_stream_says_how_its_budget_stands(sdk):
    exporter, _ = sdk
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        stream = mesh.stream(method=METHOD, direction="response")
        for unit in ("N1", "N2"):
            await stream.release(TYPES.Report(id=unit))
        stream.close()
    (span,) = exporter.get_finished_spans()
    assert span.attributes["dpmesh.direction"] == "response"
    assert (span.attributes["dpmesh.decision"], span.attributes["dpmesh.budget.spent"]) == ("released", 1.0)
    assert span.events == ()


async def test_the_quota_or_budget_nearest_its_end_is_named_and_the_consumer_never(sdk):
    exporter, reader = sdk
    quota = {"name": "partner", "under": "unit-day", "epsilon": 2.0}
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET], "quota": [quota]}) as mesh:
        for consumer in ("who-asks", "who-asks", "another"):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD, consumer=consumer)
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD, consumer="who-asks")
        for _ in range(3):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD, consumer=str(_))
        counts, _ = counted(reader)
    spans = [dict(span.attributes) for span in exporter.get_finished_spans()]
    named = [(span["dpmesh.budget.name"], span.get("dpmesh.budget.spent")) for span in spans]
    assert named == [
        ("partner", 1),
        ("partner", 2),
        ("unit-day", 3),
        ("partner", None),
        ("unit-day", 4),
        ("unit-day", 5),
        ("unit-day", 6),
    ]
    assert len({span["dpmesh.unit"] for span in spans if "dpmesh.unit" in span}) == 1, "a unit has one hash"
    assert "who-asks" not in str(spans) + str(counts)
    assert b"who-asks".hex() not in str(spans)
    assert counts[("refused", "partner")][0] == 1


def methods(reader):
    """Which methods have series, and how many messages each has."""
    found = {}
    for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                if metric.name == "dpmesh.releases":
                    found[point.attributes["method"]] = point.value
    return found


@pytest.mark.parametrize("streams", [False, True])
async def test_methods_that_peers_make_up_share_one_series(sdk, streams):
    exporter, reader = sdk
    service, name = METHOD.removeprefix("/").split("/")
    made_up = [f"/a.B/{number}" for number in range(50)]
    made_up += [
        f"//{service}/{name}",
        f"/{service}.{name}",
        f"{service}/{name}",
        f"/{service}/{name}/",
        "/",
        "x",
    ]
    made_up += [f"/{service.replace('.', '/', 1)}.{name}", "/a.B/" + "x" * 10_000, "/a.B/\0", "/\xe9.B/C"]
    budget = {**BUDGET, "epsilon": 1000.0}
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [budget]}) as mesh:
        for method in (METHOD, METHOD, "", *made_up):
            if streams:
                stream = mesh.stream(method=method)
                await stream.release(TYPES.Report(id="N1"))
                stream.close()
            else:
                await mesh.release(TYPES.Report(id="N1"), method=method)
        assert methods(reader) == {METHOD: 2, "": 1, "_OTHER": len(made_up)}
        assert len(mesh._recording.labels) == 2
    spans = [span.attributes["rpc.method"] for span in exporter.get_finished_spans()]
    assert spans[0] == METHOD
    assert {"/a.B/7", f"/{service}.{name}"} < set(spans)
    assert max(map(len, spans)) == 256


GLOBAL = {"name": "all", "key": "global", "epsilon": 6.0, "accounting": "pure", "window": "24h"}
REFUSALS = {
    "no budget": ({"budget": [GLOBAL]}, lambda: TYPES.Report(id="N1")),
    "no message": ({"budget": [BUDGET]}, lambda: "N1"),
    "no unit": ({"budget": [BUDGET]}, lambda: TYPES.Report(b=True)),
}


@pytest.mark.parametrize("way", ["release", "release_now", "stream"])
@pytest.mark.parametrize("why", REFUSALS)
async def test_every_refusal_has_a_span_with_an_error_status_and_is_counted(sdk, way, why):
    exporter, reader = sdk
    settings, make = REFUSALS[why]
    message = make()
    async with dpmesh.open({"ledger": {"url": "memory:"}, **settings}) as mesh:
        stream = mesh.stream(method=METHOD)
        with pytest.raises(DpmeshError):
            if way == "release":
                await mesh.release(message, method=METHOD)
            elif way == "release_now":
                mesh.release_now(message, method=METHOD)
            else:
                await stream.release(message)
        stream.close()
        counts, _ = counted(reader)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["dpmesh.decision"] == "refused"
    assert span.attributes["rpc.method"] == METHOD
    assert span.attributes["dpmesh.direction"] == "request"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "dpmesh refused to release the message"
    assert "N1" not in f"{span.attributes} {span.events}"
    assert counts == {("refused", ""): (1, 0.0)}


async def test_a_stream_that_ends_in_a_refusal_for_its_type_has_one_span(sdk):
    exporter, reader = sdk
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        stream = mesh.stream(method=METHOD)
        await stream.release(TYPES.Report(id="N1"))
        with pytest.raises(DpmeshError):
            await stream.release("N1")
        stream.close()
        counts, _ = counted(reader)
    (span,) = exporter.get_finished_spans()
    assert (span.attributes["dpmesh.decision"], span.attributes["dpmesh.messages.count"]) == ("refused", 1)
    assert span.attributes["dpmesh.message"] == f"{TYPES.package}.Report"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert counts[("released", "unit-day")] == (1, 1.0)
    assert sum(releases for (decision, _), (releases, _) in counts.items() if decision == "refused") == 1


async def test_what_is_not_refused_has_no_error_status(sdk):
    exporter, _ = sdk
    spent = {**BUDGET, "epsilon": 1.0, "on_exhausted": "suppress"}
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [spent]}) as mesh:
        for _ in range(2):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD)
    observing = {"ledger": {"url": "memory:"}, "budget": [GLOBAL], "mode": "observe"}
    async with dpmesh.open(observing) as mesh:
        with pytest.raises(DpmeshError):
            await mesh.release(TYPES.Report(id="N1"), method=METHOD)
    spans = exporter.get_finished_spans()
    assert [s.attributes["dpmesh.decision"] for s in spans] == ["released", "suppressed", "observed"]
    assert {span.status.status_code for span in spans} == {trace.StatusCode.UNSET}


async def test_the_record_of_a_stream_keeps_no_message(sdk):
    box = any_pb2.Any()
    box.Pack(TYPES.Report(id="N1"))
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        stream = mesh.stream(method=METHOD)
        for _ in range(6):
            await stream.release(box)
        with pytest.raises(BudgetExhaustedError):
            await stream.release(box)
        async with asyncio.timeout(10):
            while any(type(found).__name__ == "_OpenedMessage" for found in gc.get_objects()):
                await asyncio.sleep(0.01)  # The task that asked the ledger ends a moment later.
                gc.collect()
        stream.close()


BATCH = compiled(
    """message Batch { string id = 1 [(dpmesh.v1.field).unit = {}];
        repeated bool on = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 0.01} max_items: 2 length: PUBLIC}];
        repeated bool hidden = 3 [(dpmesh.v1.field) = {categorical: {epsilon: 0.01} max_items: 2}];
        repeated Row row = 4 [(dpmesh.v1.field) = {max_items: 2 length: PUBLIC}]; }
    message Row { repeated bool up = 1 [(dpmesh.v1.field) = {categorical: {epsilon: 0.01} max_items: 1 length: PUBLIC}]; }"""
)


async def test_elements_are_counted_that_are_cut_where_their_number_is_public(sdk):
    _, reader = sdk
    # 3 of `on`; 1 row, and of the 2 that are left 1 each; what is hidden does not count.
    rows = [BATCH.Row(up=[True] * 2)] * 3
    cut = BATCH.Batch(id="a", on=[True] * 5, hidden=[True] * 9, row=rows)
    fits = BATCH.Batch(id="a", on=[True] * 2, hidden=[True] * 9)
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        for message in (fits, cut, cut):
            await mesh.release(message, method=METHOD)
        stream = mesh.stream(method=METHOD)
        await stream.release(cut)
        stream.close()
        (found,) = (
            metric
            for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
            for metric in scope.metrics
            if metric.name == "dpmesh.items.cut"
        )
    (point,) = found.data.data_points
    assert (dict(point.attributes), point.value) == ({"method": METHOD}, 3 * 6)


HOLDER = compiled(
    f"""message Value {{ bool on = 1 [{CAT} = {{epsilon: 1}}]; }}
    message Holder {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; google.protobuf.Any any = 2;
        repeated bool on = 3 [(dpmesh.v1.field) = {{categorical: {{epsilon: 1}} max_items: 2 length: PUBLIC}}]; }}"""
)


async def test_what_is_cut_from_a_message_that_holds_an_any_is_counted_too(sdk):
    _, reader = sdk
    packed = any_pb2.Any()
    packed.Pack(HOLDER.Value(on=True))
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [BUDGET]}) as mesh:
        for elements in (1, 5):
            sent = HOLDER.Holder(id="N1", any=packed, on=[True] * elements)
            receipt = await mesh.release(sent, method=METHOD)
            assert len(receipt.message.on) == min(elements, 2)
    scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
    (cut,) = [metric for metric in scope.metrics if metric.name == "dpmesh.items.cut"]
    assert [point.value for point in cut.data.data_points] == [3]


async def test_observe_mode_logs_a_reason_once_and_counts_all_messages(sdk, caplog):
    _, reader = sdk
    settings = {"mode": "observe", "ledger": {"url": "memory:"}, "budget": [BUDGET | {"epsilon": 2.0}]}
    async with dpmesh.open(settings) as mesh:
        for _ in range(4):
            assert (
                await mesh.release(HOLDER.Holder(id="N1", on=[True]), method=METHOD)
            ).decision == "observed"
        for _ in range(3):
            await mesh.release(HOLDER.Holder(on=[True]), method=METHOD)
    scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
    (found,) = [metric for metric in scope.metrics if metric.name == "dpmesh.observed.refusals"]
    (point,) = found.data.data_points
    told = [text for text in caplog.messages if "would have been refused" in text]
    assert len(told) == 2
    assert (dict(point.attributes), point.value) == ({"method": METHOD}, 2 + 3)
