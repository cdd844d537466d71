"""Method names: "/package.Service/Method", as gRPC sends them. What is valid is decided here.

Descriptor pools find a method under other spellings, such as "/package/Service.Method". gRPC takes these for other
methods, so no rule is looked up under them.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool


class MethodName(NamedTuple):
    """A method's name in parts.

    Attributes:
        service: "package.Service".
        method: "Method".
    """

    service: str
    method: str

    def __str__(self) -> str:
        return f"/{self.service}/{self.method}"


def parse(name: str) -> MethodName | None:
    """The parts of a valid name, or None. A method need not be declared anywhere."""
    root, slash, rest = name.partition("/")
    service, between, method = rest.partition("/")
    valid = slash and between and service and method and not root and "/" not in method
    return MethodName(service, method) if valid else None


def name_of(method: MethodDescriptor) -> str:
    """The name of a declared method."""
    return str(MethodName(method.containing_service.full_name, method.name))


def find(name: str, pool: DescriptorPool | None = None) -> MethodDescriptor | None:
    """The method that has exactly this name, or None.

    Args:
        name: "/package.Service/Method".
        pool: Where to look; protobuf's default pool when absent.
    """
    found = find_any_spelling(name, pool)
    return found if found is not None and name_of(found) == name else None


def find_any_spelling(name: str, pool: DescriptorPool | None = None) -> MethodDescriptor | None:
    """The method that a name may mean, however it is spelled, or None.

    For refusals only: a generic handler may serve other spellings, so what protects a method covers them too.

    Args:
        name: "/package.Service/Method", or another spelling.
        pool: Where to look; protobuf's default pool when absent.
    """
    try:
        return (pool or descriptor_pool.Default()).FindMethodByName(name.lstrip("/").replace("/", "."))
    except KeyError:
        return None
