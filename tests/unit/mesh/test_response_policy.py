"""ResponsePolicy: what leaves besides protected messages, on methods that send some and on others."""

import dataclasses
import logging

import pytest

import dpmesh
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.refusals import HANDLER_FAILED, WITHHELD
from dpmesh.mesh.response_policy import HandlerFailedError, ResponsePolicy
from tests.support.protos import compiled

TYPES = compiled(
    """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
    message Plain { string text = 1; }
    service Station { rpc Ask(Plain) returns (Reading); rpc Report(Reading) returns (Plain);
        rpc Echo(Plain) returns (Plain); }"""
)
SECRET = "it was 41.77777777"
PAIRS = (("Note", SECRET), ("Page", "7"))


def policy(method, *, streams=False, mode="enforce", details_key="", twice=False, **grpc):
    budget = {"name": "day", "key": "unit", "epsilon": 1.0, "accounting": "pure", "window": "24h"}
    config = {"mode": mode, "ledger": {"url": "memory:"}, "budget": [budget], "grpc": grpc}
    flows = FlowTable(dpmesh.open(config))[f"/{TYPES.package}.Station/{method}"]
    return ResponsePolicy.of(flows, streams=streams, details_key=details_key, intercepted_twice=twice)


def test_a_method_that_sends_protected_messages_keeps_words_metadata_and_sizes():
    rules = policy("Ask")
    assert rules.masks_errors()
    assert rules.flow.sensitive()
    assert rules.forbids_compression()
    assert (rules.details(SECRET), rules.details("")) == (WITHHELD, "")
    assert rules.metadata(PAIRS) == ()


def test_a_method_that_receives_protected_messages_keeps_only_errors():
    rules = policy("Report")
    assert rules.masks_errors()
    assert not rules.flow.sensitive()
    assert not rules.forbids_compression()
    assert (rules.details(SECRET), rules.metadata(PAIRS)) == (SECRET, PAIRS)


@pytest.mark.parametrize("rules", [{"method": "Echo"}, {"method": "Ask", "mode": "observe"}])
@pytest.mark.parametrize("streams", [False, True])
def test_nothing_is_withheld_where_nothing_is_protected_or_in_observe_mode(rules, streams):
    rules = policy(**rules, streams=streams, twice=rules.get("mode") == "observe")
    assert not rules.masks_errors()
    assert not rules.flow.sensitive()
    assert not rules.forbids_compression()
    assert not rules.intercepted_twice


def test_the_configuration_lets_keys_and_details_pass():
    assert policy("Ask", pass_metadata=["PAGE"]).metadata(PAIRS) == PAIRS[1:]
    rules = policy("Ask", details_key="status-bin", pass_status_details=True)
    assert rules.details(SECRET) == SECRET
    assert rules.metadata((*PAIRS, ("status-bin", b""))) == (("status-bin", b""),)


def test_functions_of_the_application_fail_without_their_texts(caplog):
    def fail(message):
        raise ValueError(SECRET)

    with pytest.raises(HandlerFailedError, match=HANDLER_FAILED) as caught, caplog.at_level(logging.ERROR):
        policy("Ask").without_text(fail)(b"")
    assert caught.value.__context__ is None
    assert "ValueError at" in caplog.text
    assert SECRET not in caplog.text
    for rules, argument in ((policy("Echo"), b""), (policy("Ask"), None)):
        with pytest.raises(ValueError, match=SECRET):
            rules.without_text(fail)(argument)
    assert policy("Ask").without_text(None) is None
    assert policy("Ask").without_text(bytes)(b"a") == b"a"


def test_it_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy("Ask").pass_details = True
