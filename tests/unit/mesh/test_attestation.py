"""Attestation: which requests are attested, what the application can't forge, and who is refused without it."""

import logging

import pytest

import dpmesh
from dpmesh.mesh.attestation import (
    POLICY_KEY,
    is_attested,
    later_metadata,
    message_metadata,
    refusal_without,
    stream_metadata,
)
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.refusals import Category
from tests.support.protos import compiled

TYPES = compiled(
    """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
    message Plain { string text = 1; }
    service Station { rpc Report(stream Reading) returns (Plain); rpc Echo(stream Plain) returns (Plain);
        rpc Strict(Reading) returns (Plain) { option (dpmesh.v1.method).require = true; } }"""
)
GIVEN = (("traceparent", "1"), ("x-request-id", "17"), (POLICY_KEY, "forged"), ("encoding", "gzip"))
ADDED = (("encoding", "identity"),)
COMPRESSION = "grpc-internal-encoding-request"


def table(mode="enforce"):
    budget = {"name": "day", "key": "unit", "epsilon": 1.0, "accounting": "pure", "window": "24h"}
    return FlowTable(dpmesh.open({"mode": mode, "ledger": {"url": "memory:"}, "budget": [budget]}))


def flows(method, **options):
    return table(**options)[f"/{TYPES.package}.Station/{method}"]


def test_a_protected_message_is_attested_with_the_digest_of_its_policy():
    flow = flows("Report").request
    attestation = (POLICY_KEY, flow.snapshot.digest)
    assert message_metadata(flow, "raw", "noisy", GIVEN, ADDED) == (GIVEN[0], attestation, *ADDED)
    assert message_metadata(flow, "raw", "noisy", None) == (attestation,)
    assert message_metadata(flow, "raw", "raw", GIVEN, ADDED) is GIVEN


def test_a_stream_is_attested_by_what_its_method_declares():
    flow = flows("Report").request
    assert stream_metadata(flow, GIVEN, ADDED) == (GIVEN[0], (POLICY_KEY, flow.snapshot.digest), *ADDED)
    assert stream_metadata(flows("Echo").request, GIVEN, ADDED) is GIVEN
    assert stream_metadata(flows("Report", mode="observe").request, GIVEN, ADDED) is GIVEN


def test_what_is_added_later_is_looked_at_as_well():
    flow = flows("Report").request
    given = message_metadata(flow, "raw", "noisy", GIVEN, ((COMPRESSION, "identity"),))
    assert later_metadata(flow, given, streams=False) is given
    assert later_metadata(flow, (*given, ("baggage", "a=1")), streams=False) == given
    assert later_metadata(flow, GIVEN[:2], streams=False) == GIVEN[:2]  # The request was not protected.
    assert later_metadata(flow, GIVEN[:2], streams=True) == GIVEN[:1]
    assert later_metadata(flow, None, streams=True) is None


def test_a_stream_without_a_declared_type_is_not_attested_and_can_not_forge_it():
    flow = table()["/no.Such/Method"].request
    flow.protected = True  # as if any rule were in force
    assert stream_metadata(flow, GIVEN, ADDED) == (GIVEN[0], *ADDED)


@pytest.mark.parametrize(("metadata", "attested"), [((), False), (GIVEN[:1], False), (GIVEN, True)])
def test_a_receiver_looks_for_the_key(metadata, attested):
    assert is_attested(metadata) is attested


def test_only_methods_that_require_it_refuse_other_requests(caplog):
    refusal = refusal_without(flows("Strict"))
    assert (refusal.category, refusal.reason) == (Category.PRECONDITION, "NOT_PROTECTED")
    assert refusal.details == {"method": f"/{TYPES.package}.Station/Strict"}
    assert "'dpmesh-policy' is missing" in refusal.text
    assert refusal_without(flows("Report")) is None
    with caplog.at_level(logging.WARNING):
        assert refusal_without(flows("Strict", mode="observe")) is None
    assert "requires protected requests, and takes any" in caplog.text
