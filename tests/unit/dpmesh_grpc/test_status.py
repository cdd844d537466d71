"""Status: each refusal has gRPC's code for it, says why in its details, and stops retries that would not help."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from dpmesh.mesh.refusals import Category, Refusal
from dpmesh_grpc.status import DETAILS_KEY, failure

CODES = {
    Category.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Category.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Category.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Category.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Category.INTERNAL: grpc.StatusCode.INTERNAL,
}


@pytest.mark.parametrize("category", Category)
def test_a_refusal_as_a_status(category):
    status = failure(Refusal(category, "REASON", "text", {"field": "a.B"}))
    trailing = dict(status.trailing)
    assert (status.code, status.text) == (CODES[category], "text")
    assert ("grpc-retry-pushback-ms" in trailing) == (category is not Category.UNAVAILABLE)
    told = status_pb2.Status.FromString(trailing[DETAILS_KEY])
    (detail,) = told.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (told.code, told.message) == (CODES[category].value[0], "text")
    assert (info.reason, info.domain, dict(info.metadata)) == ("REASON", "dpmesh", {"field": "a.B"})


def test_when_a_budget_renews():
    status = failure(Refusal(Category.EXHAUSTED, "REASON", "text", {}, 1.5))
    _, detail = status_pb2.Status.FromString(dict(status.trailing)[DETAILS_KEY]).details
    retry = error_details_pb2.RetryInfo()
    assert detail.Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5
