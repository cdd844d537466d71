"""Policy: the rules in force, and the plans compiled from them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh import method_name
from dpmesh.errors import ConfigError
from dpmesh.policy import overlay_file, overlay_paths, required_policy, send_slot
from dpmesh.policy.compile.compiler import compile_message
from dpmesh.policy.descriptors import extensions, is_map_entry
from dpmesh.policy.diagnostics import Diagnostic, Severity
from dpmesh.policy.plan import Plan
from dpmesh.policy.required_policy import RequiredPolicy
from dpmesh.policy.rulebook import Rulebook, default_twin
from dpmesh.v1 import policy_pb2


class Policy:
    """Annotations, overlays, and a cache of compiled plans (failures too).

    Args:
        overlays: A policy file's path, a dpmesh.v1.Policy message, or None for annotations alone.

    Raises:
        ConfigError: The overlays are none, the file can't be read or does not fit the schema, or an overlay sets
            nothing.
    """

    def __init__(self, overlays: str | Path | policy_pb2.Policy | None = None) -> None:
        if isinstance(overlays, (str, Path)):
            overlays = overlay_file.load(overlays)
        elif isinstance(overlays, policy_pb2.Policy):
            overlay_file.check(overlays)
        elif overlays is not None:
            kind = type(overlays).__name__
            raise ConfigError(
                f"policy: a {kind} is no policy; allowed: a dpmesh.v1.Policy message or a file's path"
            )
        self.rules = Rulebook(overlays)
        # Each with the number of other types known then that can change the answer.
        self._compiled: dict[Descriptor, tuple[Plan | None, list[Diagnostic], int]] = {}

    @property
    def digest(self) -> str:
        """What names this policy in logs: SHA-256 of its overlays, in hex."""
        return self.rules.digest

    @property
    def document(self) -> policy_pb2.Policy:
        """The whole document: overlays, budgets, quotas and mode. It must not be changed."""
        return self.rules.overlay

    def plan(self, message: Descriptor) -> Plan | None:
        """The plan of a message type, or None when nothing of it can ever be protected.

        A type that reaches google.protobuf.Any, or a type that can be extended, always has a plan. If nothing else
        of it is protected, the plan `is_open`; importing an extension with a rule replaces it by another one.

        Raises:
            AnnotationError: One of its annotations is bad.
        """
        plan, diagnostics, _ = self._compile(message)
        for diagnostic in diagnostics:
            if diagnostic.severity is Severity.ERROR:
                raise diagnostic.error()
        return plan

    def diagnostics(self, message: Descriptor) -> list[Diagnostic]:
        """What is wrong with a message type's annotations, or worth a look."""
        return list(self._compile(message)[1])

    def requires(self, method: MethodDescriptor) -> bool:
        """Whether a receiver refuses requests of this method that no dpmesh sender has protected."""
        rules = self.rules.method(method).rules
        return bool(rules.require) or rules.HasField("require_policy")

    def required_policy(self, method: MethodDescriptor) -> RequiredPolicy | None:
        """What a receiver asks of the policy of this method's senders; None where any sender that protects will do.

        Raises:
            AnnotationError: The method's rules are bad, or those of its requests.
        """
        rules = self.rules.method(method).rules
        if not rules.HasField("require_policy"):
            return None
        return required_policy.checked(method, rules, self.plan(method.input_type))

    def is_trust_boundary(self, method: MethodDescriptor) -> bool:
        """Whether senders cut the trace of this method's requests off."""
        return bool(self.rules.method(method).rules.trust_boundary)

    def send_slot(self, method: MethodDescriptor) -> float | None:
        """The seconds between two slots in which this method's requests leave; None where they leave at once.

        Raises:
            AnnotationError: The method's rules are bad, or those of its requests.
        """
        rules = self.rules.method(method).rules
        if not rules.HasField("send_slot"):
            return None
        return send_slot.checked(method, rules.send_slot, self.plan(method.input_type))

    def labels(self, method: str, pool: DescriptorPool | None = None) -> frozenset[str]:
        """The labels of a method; none if no proto has it.

        Args:
            method: "/package.Service/Method".
            pool: Where to look; protobuf's default pool when absent.

        Raises:
            AnnotationError: Its annotation is bad.
        """
        descriptor = method_name.find(method, pool)
        return frozenset() if descriptor is None else frozenset(self.rules.method(descriptor).rules.labels)

    def declares(self, method: str, pool: DescriptorPool) -> bool:
        """Whether a proto that is loaded, or one in another pool, has a method."""
        return any(method_name.find(method, each) is not None for each in {descriptor_pool.Default(), pool})

    def unresolved_overlays(self, pool: DescriptorPool | None = None) -> list[str]:
        """The names of overlays that no loaded proto has: misspelled, or imported too late.

        Those that the policy's `may_be_missing` fits are left out.

        Args:
            pool: Where to look; protobuf's default pool when absent.
        """
        pool = pool or descriptor_pool.Default()
        return sorted(
            name
            for section in SECTIONS
            for name in getattr(self.rules.overlay, section)
            if not takes_rules(section, name, pool)
            and not any(fnmatchcase(name, glob) for glob in self.document.may_be_missing)
        )

    def _compile(self, message: Descriptor) -> tuple[Plan | None, list[Diagnostic], int]:
        compiled = self._compiled.get(message)
        if compiled is None or _count_deciding(message, compiled[0]) != compiled[2]:
            before, known = -1, 0
            while before != known:  # Another thread may import a module meanwhile.
                before = known
                plan, diagnostics = compile_message(message, self.rules)
                known = _count_deciding(message, plan)
            compiled = self._compiled[message] = plan, diagnostics, known
        return compiled


def is_foreign(message: Descriptor) -> bool:
    """Whether a type is from another pool than the default one, to which a module may yet add rules for it."""
    return message.file.pool is not descriptor_pool.Default()


def _count_deciding(message: Descriptor, plan: Plan | None) -> int:
    """How many types and extensions this process knows that can change the plan of a type."""
    return _count_extensions(plan) + (_count_twins(message) if is_foreign(message) else 0)


def _count_twins(message: Descriptor) -> int:
    """How many of the types that a type of another pool reaches are in protobuf's default pool too."""
    seen, todo = {message.full_name}, [message]
    for at in todo:
        for field in (*at.fields, *extensions(at)):
            inside = field.message_type
            if inside is not None and inside.full_name not in seen:
                seen.add(inside.full_name)
                todo.append(inside)
    return sum(default_twin(at) is not None for at in todo)


def _count_extensions(plan: Plan | None) -> int:
    """How many extensions this process knows that can replace an open plan.

    Descriptor pools have no version, but an extension that was added to one stays.
    """
    if plan is None or plan.anys is None:
        return 0
    return sum(len(extensions(message)) for message in plan.anys.extendable)


# The sections of a policy file that hold overlays.
SECTIONS = ("fields", "messages", "methods", "oneofs")


def takes_rules(section: str, name: str, pool: DescriptorPool) -> bool:
    """Whether a pool has an element whose rules are looked up under a name.

    Args:
        section: One of SECTIONS.
        name: The element's full name or a path to it, "/package.Service/Method" for methods.
        pool: Where to look.
    """
    if section == "methods":
        return method_name.find(name, pool) is not None
    return _is_full_name(section, name, pool) or overlay_paths.leads_to_element(section, name, pool)


def _is_full_name(section: str, name: str, pool: DescriptorPool) -> bool:
    """Whether an element of one section has a full name, and rules are looked up under it."""
    try:
        if section == "messages":
            return not is_map_entry(pool.FindMessageTypeByName(name))
        if section == "oneofs":
            # Not FindOneofByName, which crashes the process before protobuf 7.35 if there is none of that name.
            message, _, oneof = name.rpartition(".")
            return oneof in pool.FindMessageTypeByName(message).oneofs_by_name
        field = pool.FindFieldByName(name)
    except KeyError:
        return False
    holder = field.containing_type
    # No rule is looked up for extensions, which never leave with a protected message, nor for the entries of a map.
    return not field.is_extension and holder is not None and not is_map_entry(holder)
