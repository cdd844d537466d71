"""RequestMetadata: which keys leave with requests, which never do, and what the log says of those."""

import logging

import pytest

import dpmesh
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.request_metadata import TRACE_KEYS
from dpmesh_grpc.aio.internals import COMPRESSION_KEY
from dpmesh_grpc.tokens.ticket_metadata import TICKET_KEY
from tests.support.protos import compiled

TYPES = compiled(
    """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
    message Plain { string text = 1; }
    service Station { rpc Report(Reading) returns (Plain);
        rpc Abroad(Reading) returns (Plain) { option (dpmesh.v1.method).trust_boundary = true; }
        rpc Echo(Plain) returns (Plain) { option (dpmesh.v1.method).trust_boundary = true; } }"""
)
TRACE = (("traceparent", "00-17"), ("tracestate", "a=1"), ("b3", "17"))
OWN = (("dpmesh-policy", "1"), (TICKET_KEY, "2"), (COMPRESSION_KEY, "identity"))
TOKEN = ("authorization", "PrivateToken token=AAA")
SECRET = "41.77777777"
OTHERS = tuple((key, SECRET) for key in ("baggage", "x-request-id", "authorization", "user-agent", "x-a-bin"))


def request(method, *, mode="enforce", **grpc):
    budget = {"name": "day", "key": "unit", "epsilon": 1.0, "accounting": "pure", "window": "24h"}
    config = {"mode": mode, "ledger": {"url": "memory:"}, "budget": [budget], "grpc": grpc}
    return FlowTable(dpmesh.open(config))[f"/{TYPES.package}.Station/{method}"].request.request_metadata


def test_only_an_allow_list_leaves_with_protected_requests():
    rules = request("Report")
    kept = (*TRACE, *OWN, TOKEN)
    assert rules.with_protected((*OTHERS, *kept)) == kept
    assert rules.with_protected(kept) is kept
    assert rules.with_protected(None) is None
    assert rules.with_others(OTHERS) is OTHERS


def test_a_configuration_adds_keys_but_no_baggage():
    rules = request("Report", pass_metadata=["X-Request-ID", "authorization"])
    assert rules.with_protected(OTHERS) == OTHERS[1:3]


def test_no_trace_goes_on_over_a_trust_boundary():
    rules = request("Abroad", pass_metadata=["traceparent", "x-request-id"])
    assert rules.with_protected((*TRACE, *OWN, *OTHERS)) == (*OWN, OTHERS[1])
    every = tuple((key, "17") for key in (*sorted(TRACE_KEYS), "baggage"))
    assert request("Echo").with_others((*every, *OTHERS[1:])) == OTHERS[1:]


def test_keys_of_any_case_are_the_same_keys():
    assert request("Abroad").with_protected((("TraceParent", "1"), ("Baggage", "2"))) == ()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("x-request-id", "[grpc] pass_metadata lets it leave"),
        ("baggage", "it may carry anything"),
        ("traceparent", "the method is a trust boundary"),
    ],
)
def test_each_key_is_logged_once_and_no_value(key, words, caplog):
    rules = request("Abroad")
    for _ in range(3):
        rules.with_protected(((key, SECRET),))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"metadata key '{key}' does not leave on /{TYPES.package}.Station/Abroad" in record.message
    assert words in record.message
    assert SECRET not in caplog.text


def test_a_key_that_could_be_made_of_a_value_is_not_named(caplog):
    request("Report").with_protected(((f"x-{SECRET}", "1"),))
    assert "metadata key with signs that are no letters does not leave" in caplog.text
    assert SECRET not in caplog.text


def test_observe_mode_only_says_what_would_not_leave(caplog):
    rules = request("Abroad", mode="observe")
    assert rules.with_protected(OTHERS) is OTHERS
    assert rules.with_others(TRACE) is TRACE
    assert "observe mode: metadata key 'x-request-id' would not leave on" in caplog.text
    assert "observe mode: metadata key 'traceparent' would not leave on" in caplog.text
