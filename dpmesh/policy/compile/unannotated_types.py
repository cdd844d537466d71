"""UnannotatedTypes: where a message of a type without rules can hold Anys, and what finds them at its release.

The type of what an Any packs is known at release only. So a message type that reaches an Any may always have something
to protect: each message tells. Extendable types are alike, because an extension can hold an Any and can have a rule,
and the module that declares it can be imported at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from dpmesh.errors import ProtectionError
from dpmesh.policy.compile.anys import ANY, Found, contents_of, is_any
from dpmesh.policy.descriptors import DEEPEST, extensions, inside_of, mark
from dpmesh.policy.kinds.kind import FieldKind
from dpmesh.policy.kinds.registry import kind_of
from dpmesh.policy.rulebook import Rulebook
from dpmesh.v1 import privacy_pb2 as pb


class _Branch(NamedTuple):
    """A field that can lead to an Any.

    Attributes:
        field: The field.
        name: Its full name.
        inside: The message type that it holds.
        contents: From a message to the messages in the field, each with its index or key.
        rule: Of a field that holds Anys: its `unannotated`.
    """

    field: FieldDescriptor
    name: str
    inside: Descriptor
    contents: Callable[[Any], Iterable[tuple[Any, Any]]]
    rule: int | None


class UnannotatedTypes:
    """Walks messages of types without rules, which may hold themselves.

    Args:
        book: The rules: a `public` field leaves as it is, on purpose, with all that is in it.
    """

    def __init__(self, book: Rulebook) -> None:
        self._book = book
        self._reaching: dict[tuple[Descriptor, bool], bool] = {}
        self._branches_of: dict[Descriptor, tuple[_Branch, ...]] = {}
        self._branches: dict[FieldDescriptor, _Branch | None] = {}
        self._rules: dict[Descriptor, int] = {}

    def rule_of(self, field: FieldDescriptor, unannotated: int = pb.MessageRules.PASS) -> int:
        """What becomes of packed types without rules: the stricter of what the holder says and what Any itself says.

        Args:
            field: A field that holds Anys, or one of Any's own.
            unannotated: What the message that holds the Any says.
        """
        inside = inside_of(field)
        return self._rule(field.containing_type if inside is None else inside, unannotated)

    def _rule(self, message: Any, unannotated: int = pb.MessageRules.PASS) -> int:
        own = self._rules.get(message)
        if own is None:
            own = self._rules[message] = int(self._book.message(message).rules.unannotated)
        return max(unannotated, own)

    def reaches(self, message: Descriptor, *, strict: bool = False) -> bool:
        """Whether a message of this type can hold an Any, or an extension, which can hold one.

        Args:
            message: The type.
            strict: It stands in a protected one, whose extensions never leave.
        """
        reaching = self._reaching.get((message, strict))
        if reaching is None:
            types = self._types(message, strict=strict)
            reaching = any(is_any(at) or (at.is_extendable and not strict) for at in types)
            self._reaching[message, strict] = reaching
        return reaching

    def extendable(self, message: Descriptor) -> tuple[Descriptor, ...]:
        """All extendable types that the type reaches, also by the extensions that this process knows."""
        return tuple(at for at in self._types(message) if at.is_extendable)

    def around(self, message: Descriptor, *, strict: bool = False) -> tuple[set[str], set[str]]:
        """The names and the labels of the types in which an Any can lie, the type itself included.

        Args:
            message: The type.
            strict: It stands in a protected one.
        """
        types = [at for at in self._types(message, strict=strict) if self.reaches(at, strict=strict)]
        labels = {label for at in types for label in self._book.message(at).rules.labels}
        return {message.full_name, *(at.full_name for at in types)}, labels

    def any_fields(self, message: Descriptor, path: str) -> Iterator[tuple[str, FieldDescriptor]]:
        """Each field within a type that holds Anys, once, with its path.

        Args:
            message: The type.
            path: What comes before the names of its fields.
        """
        seen, todo = {message.full_name}, [(message, path)]
        for at, before in todo:
            for field in (*at.fields, *extensions(at)):
                inside = inside_of(field)
                if inside is None or self._branch_of(field) is None:
                    continue
                here = before + (f"({field.full_name})" if field.is_extension else field.name)
                if is_any(inside):
                    yield here, field
                elif inside.full_name not in seen:
                    seen.add(inside.full_name)
                    todo.append((inside, f"{here}{mark(field)}."))

    def find(self, message: Any, strict: bool) -> Iterator[Found]:
        """Finds the Anys in a message.

        Args:
            message: The message.
            strict: It lies in a protected one, whose extensions never leave and so need no look.

        Raises:
            ProtectionError: More messages lie in each other than protobuf can send.
        """
        kind = message.DESCRIPTOR
        if is_any(kind):
            yield Found(message, message, None, None, self._rule(kind), (), strict, ANY)
            return
        todo = [(message, kind, 1)]
        while todo:
            at, kind, depth = todo.pop()
            if depth > DEEPEST:
                text = f"more than {DEEPEST} messages lie in each other"
                raise ProtectionError("WRONG_TYPE", kind.full_name, text)
            branches = self._branches_of.get(kind) or self._find_branches(kind)
            if kind.is_extendable and not strict:
                branches += tuple(self._extended(at))
            for field, name, inside, contents, rule in branches:
                if rule is not None:
                    for key, inner in contents(at):
                        yield Found(inner, at, field, key, rule, (), strict, name)
                else:
                    todo += [(inner, inside, depth + 1) for _, inner in contents(at)]

    def find_in_protected(self, message: Any, _strict: bool) -> Iterator[Found]:
        """Finds the Anys in a message that lies in a protected one."""
        return self.find(message, True)

    def _find_branches(self, message: Descriptor) -> tuple[_Branch, ...]:
        """The fields of a type that can lead to an Any."""
        branches = tuple(branch for field in message.fields if (branch := self._branch_of(field)) is not None)
        self._branches_of[message] = branches
        return branches

    def _extended(self, message: Any) -> Iterator[_Branch]:
        """The extensions of a message that can lead to an Any."""
        for field, _ in message.ListFields():
            if not field.is_extension:
                continue
            kind = self._kind(field)
            if kind is not None and not kind.passes:  # Its module was imported a moment ago.
                raise ProtectionError("INTERNAL", field.full_name, "has a rule that was not in force yet")
            branch = self._branch_of(field)
            if branch is not None:
                yield branch

    def _branch_of(self, field: FieldDescriptor) -> _Branch | None:
        """How a field of a message leads to Anys; None if it can't."""
        if field not in self._branches:
            inside, branch = inside_of(field), None
            if inside is not None and self._kind(field) is None and self.reaches(inside):
                rule = self._rule(inside) if is_any(inside) else None
                branch = _Branch(field, field.full_name, inside, contents_of(field), rule)
            self._branches[field] = branch
        return self._branches[field]

    def _types(self, message: Descriptor, *, strict: bool = False) -> list[Descriptor]:
        """All types that the type reaches, itself included, but for those below `public`."""
        seen, todo = {message.full_name}, [message]
        for at in todo:
            for field in (*at.fields, *(() if strict else extensions(at))):
                inside = inside_of(field)
                if inside is None or inside.full_name in seen or self._kind(field) is not None:
                    continue
                seen.add(inside.full_name)
                todo.append(inside)
        return todo

    def _kind(self, field: FieldDescriptor) -> FieldKind | None:
        return kind_of(self._book.field(field).rules)
