"""LazyMetadata does what gRPC's own metadata does."""

import copy
import operator
import pickle
from collections.abc import Hashable

import grpc
import pytest

from dpmesh_grpc.aio.internals import LazyMetadata


def test_the_metadata_is_like_grpcs_own():
    pairs = (("a", "1"), ("b", "2"), ("a", "3"))
    theirs = grpc.aio.Metadata(*pairs)
    assert tuple(LazyMetadata(*pairs)) == pairs
    assert len(LazyMetadata(*pairs)) == 3
    changed = LazyMetadata(*pairs)
    changed.add("c", "4")
    theirs.add("c", "4")
    assert tuple(changed) == tuple(theirs)
    assert len(changed) == 4
    assert changed["a"] == "1"
    assert "c" in changed
    assert "c" not in LazyMetadata(*pairs)
    with pytest.raises(AttributeError):
        _ = changed.nothing


PAIRS = (("a", "1"), ("a", "3"), ("b", b"2"))


def _changing(name, *arguments):
    """An operation that changes metadata; its result is the metadata."""

    def run(metadata):
        if name == "del":
            del metadata[arguments[0]]
        else:
            getattr(metadata, name)(*arguments)
        return metadata

    return run


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=name)
        for name, run in {
            "add": _changing("add", "c", "4"),
            "set": _changing("__setitem__", "a", "9"),
            "set new": _changing("__setitem__", "c", "9"),
            "set_all": _changing("set_all", "b", ["7", "8"]),
            "del": _changing("del", "a"),
            "delete_all": _changing("delete_all", "a"),
            "keys": lambda m: list(m.keys()),
            "values": lambda m: list(m.values()),
            "items": lambda m: list(m.items()),
            "get": lambda m: (m.get("a"), m.get("none"), m.get("none", "x"), m["b"]),
            "get_all": lambda m: (m.get_all("a"), m.get_all("none")),
            "in": lambda m: ("a" in m, "none" in m, 7 in m),
            "length": len,
            "tuple": tuple,
            "true": bool,
            "add tuple": lambda m: operator.add(m, (("c", "4"),)),
            "add metadata": lambda m: m + grpc.aio.Metadata(("c", "4")),
            "add lazy": lambda m: m + LazyMetadata(("c", "4")),
            "added to": lambda m: grpc.aio.Metadata(("c", "4")) + m,
            "add itself": lambda m: m + m,
            "equal": lambda m: (m == grpc.aio.Metadata(*PAIRS), m != grpc.aio.Metadata(*PAIRS)),
            "equal lazy": lambda m: (m == LazyMetadata(*PAIRS), m == LazyMetadata()),
            "equal tuple": lambda m: (m == PAIRS, m == (), m == list(PAIRS)),
            "equal on the right": lambda m: (grpc.aio.Metadata(*PAIRS) == m, operator.eq(PAIRS, m)),
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
            "pickle": lambda m: pickle.loads(pickle.dumps(m)),
            "pickle once read": lambda m: (m["a"], pickle.loads(pickle.dumps(m)))[1],
            "from_tuple": lambda m: type(m).from_tuple(PAIRS[:1]),
            "from_tuple none": lambda m: type(m).from_tuple(()),
            "from metadata": lambda m: type(m).from_tuple(m),
            "its class": lambda m: type(m)(*m),
            "is metadata": lambda m: isinstance(m, grpc.aio.Metadata),
            "no hash": lambda m: isinstance(m, Hashable),
        }.items()
    ],
)
def test_each_operation_of_the_metadata_gives_what_grpcs_own_gives(run):
    expected, found = run(grpc.aio.Metadata(*PAIRS)), run(LazyMetadata(*PAIRS))
    if isinstance(expected, grpc.aio.Metadata):
        assert isinstance(found, grpc.aio.Metadata)
        assert (tuple(found), len(found)) == (tuple(expected), len(expected))
        assert found == expected
    else:
        assert found == expected


@pytest.mark.parametrize("other", [None, 7, [("c", "4")], {"c": "4"}])
def test_what_grpcs_own_metadata_can_not_add_this_can_not_either(other):
    for metadata in (grpc.aio.Metadata(*PAIRS), LazyMetadata(*PAIRS)):
        with pytest.raises(TypeError):
            metadata + other
