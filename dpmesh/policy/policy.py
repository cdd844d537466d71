"""Policy: the rules in force, and the plans compiled from them."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh.policy import overlay
from dpmesh.policy.compiler import compile_message
from dpmesh.policy.plan import Plan
from dpmesh.policy.problem import Problem, Severity
from dpmesh.policy.rules import Rulebook
from dpmesh.policy.types import extensions, is_map_entry
from dpmesh.v1 import policy_pb2


class Policy:
    """Annotations, overlays, and a cache of compiled plans (failures too).

    Args:
        overlays: A policy file's path, a dpmesh.v1.Policy message, or None for annotations alone.

    Raises:
        ConfigError: The file can't be read or does not fit the schema.
    """

    def __init__(self, overlays: str | Path | policy_pb2.Policy | None = None) -> None:
        if isinstance(overlays, (str, Path)):
            overlays = overlay.load(overlays)
        self.rules = Rulebook(overlays)
        # With the number of extensions that were known then, of the types whose extensions can change the answer.
        self._compiled: dict[Descriptor, tuple[Plan | None, list[Problem], int]] = {}

    @property
    def digest(self) -> str:
        """What names this policy on the wire: SHA-256 of its overlays, in hex."""
        return self.rules.digest

    def plan(self, message: Descriptor) -> Plan | None:
        """The plan of a message type, or None when nothing of it can ever be protected.

        A type that reaches google.protobuf.Any, or a type that can be extended, always has a plan. If nothing else
        of it is protected, the plan `is_open`; it is another one once an extension with a rule has been imported.

        Raises:
            AnnotationError: One of its annotations is bad.
        """
        plan, problems, _ = self._compile(message)
        for problem in problems:
            if problem.severity is Severity.ERROR:
                raise problem.error()
        return plan

    def problems(self, message: Descriptor) -> list[Problem]:
        """Everything that is wrong or worth a look in a message type's annotations."""
        return list(self._compile(message)[1])

    def requires(self, method: MethodDescriptor) -> bool:
        """Whether a receiver refuses requests of this method that no dpmesh sender has protected."""
        return bool(self.rules.method(method).rules.require)

    def labels(self, method: str, pool: DescriptorPool | None = None) -> frozenset[str]:
        """The labels of a method; none if no proto has it.

        Args:
            method: "/package.Service/Method".
            pool: Where to look; protobuf's default pool when absent.

        Raises:
            AnnotationError: Its annotation is bad.
        """
        try:
            found = (pool or descriptor_pool.Default()).FindMethodByName(_dotted(method))
        except KeyError:
            return frozenset()
        return frozenset(self.rules.method(found).rules.labels)

    def declares(self, method: str, pool: DescriptorPool) -> bool:
        """Whether a proto that is loaded, or one in another pool, has a method."""
        try:
            name = _dotted(method)
        except KeyError:
            return False
        default = descriptor_pool.Default()
        if _found(default.FindMethodByName, name):
            return True
        return pool is not default and _found(pool.FindMethodByName, name)

    def stray(self, pool: DescriptorPool | None = None) -> list[str]:
        """The overlays' names that no loaded proto has: misspelled, or imported too late.

        Args:
            pool: Where to look; protobuf's default pool when absent.
        """
        pool = pool or descriptor_pool.Default()
        overlays = self.rules.overlay
        finders = (
            (overlays.fields, lambda name: _ruled_field(pool.FindFieldByName(name))),
            (overlays.messages, lambda name: _ruled_message(pool.FindMessageTypeByName(name))),
            (overlays.oneofs, pool.FindOneofByName),
            (overlays.methods, lambda name: pool.FindMethodByName(_dotted(name))),
        )
        return sorted(name for names, find in finders for name in names if not _found(find, name))

    def _compile(self, message: Descriptor) -> tuple[Plan | None, list[Problem], int]:
        done = self._compiled.get(message)
        if done is None or _extensions(done[0]) != done[2]:
            plan, problems = compile_message(message, self.rules)
            done = self._compiled[message] = plan, problems, _extensions(plan)
        return done


def _extensions(plan: Plan | None) -> int:
    """How many extensions this process knows of the types whose extensions can make another plan of an open one.

    Descriptor pools have no version, but an extension that was added to one stays.
    """
    if plan is None or plan.anys is None:
        return 0
    return sum(len(extensions(message)) for message in plan.anys.extendable)


def _dotted(method: str) -> str:
    """How descriptor pools spell "/package.Service/Method", the only form that is a rule's name."""
    service, slash, name = method.removeprefix("/").partition("/")
    if not (method.startswith("/") and slash):
        raise KeyError(method)
    return f"{service}.{name}"


def _ruled_field(field: FieldDescriptor) -> None:
    """Fields for which no rule is ever looked up: extensions never leave, and a map's entries are no message."""
    inside = field.containing_type
    if field.is_extension or inside is None or is_map_entry(inside):
        raise KeyError(field.full_name)


def _ruled_message(message: Descriptor) -> None:
    """A map's entries are no message whose rules are looked up."""
    if is_map_entry(message):
        raise KeyError(message.full_name)


def _found(find, name: str) -> bool:  # type: ignore[no-untyped-def]
    try:
        find(name)
    except KeyError:
        return False
    return True
