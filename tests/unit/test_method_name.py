"""Method names: one form is valid, and other spellings count only where something is refused."""

import pytest
from google.protobuf import descriptor_pool

from dpmesh import method_name
from dpmesh.method_name import MethodName
from dpmesh.v1 import identity_pb2

SERVICE = identity_pb2.DESCRIPTOR.services_by_name["IssuerService"]
METHOD = SERVICE.methods[0]
NAME = f"/{SERVICE.full_name}/{METHOD.name}"
OTHER_SPELLINGS = [
    NAME.removeprefix("/"),
    "/" + NAME,
    NAME.removeprefix("/").replace("/", "."),
    NAME.replace(".", "/"),
    NAME[:-1].replace("v1.", "v1/") + NAME[-1],
]
INVALID = [
    "",
    "/",
    "//",
    "///",
    "a",
    "/a",
    "a/b",
    "/a/",
    "//b",
    "/a/b/",
    "/a/b/c",
    "//a/b",
    "a/b/c",
    *OTHER_SPELLINGS,
]


def test_a_valid_name_has_two_parts():
    assert method_name.parse("/a.B/C") == MethodName("a.B", "C")
    assert str(MethodName("a.B", "C")) == "/a.B/C"
    assert method_name.parse(NAME) == (SERVICE.full_name, METHOD.name)


@pytest.mark.parametrize("name", INVALID)
def test_no_other_form_is_valid_or_found(name):
    assert method_name.parse(name) is None
    assert method_name.find(name) is None


def test_a_declared_method_is_found_by_its_name():
    assert method_name.name_of(METHOD) == NAME
    assert method_name.find(NAME) is METHOD
    assert method_name.find(NAME, descriptor_pool.Default()) is METHOD


def test_a_valid_name_that_is_not_declared_is_not_found():
    package, _, service = SERVICE.full_name.rpartition(".")
    for name in (NAME + "x", "/x" + NAME[1:], f"/{package}/{service}.{METHOD.name}", "/a/b"):
        assert method_name.parse(name) is not None
        assert method_name.find(name) is None
    assert method_name.find(NAME, descriptor_pool.DescriptorPool()) is None


@pytest.mark.parametrize("name", [NAME, *OTHER_SPELLINGS])
def test_other_spellings_are_found_where_something_is_refused(name):
    assert method_name.find_any_spelling(name) is METHOD


@pytest.mark.parametrize("name", ["", "/", "/a/b", NAME + "x"])
def test_what_no_spelling_of_a_method_is_found_nowhere(name):
    assert method_name.find_any_spelling(name) is None
