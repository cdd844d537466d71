"""Budget: a cap on privacy loss over one window, for each unit or for all units together; and quotas under it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Literal

from dpmesh.accounting import Accounting, cap, check_length
from dpmesh.errors import ConfigError

QUOTA_KEYS = ("unit/consumer", "global/consumer")
KEYS = ("unit", "global", *QUOTA_KEYS)
ON_EXHAUSTED = ("reject", "suppress", "replay")
DIRECTIONS = ("request", "response")

Charge = tuple[int, bytes, int]
"""(index into the ledger's budgets, the account's key, ledger amount).

The account's key is the unit's canonical bytes, b"" for a global budget, and `consumer_key` of those for a quota.
"""

# A glob that begins with one of these can match any beginning.
_WILDCARDS = ("*", "?", "[")
_LENGTH_BYTES = 4
_TRUST_DOMAIN = re.compile("spiffe://[^/]+")
# These parts of the names by which servers know consumers have lower-case letters only.
_LOWER_CASE = re.compile("spiffe://[^/]*|dns:.*", re.IGNORECASE | re.DOTALL)


def consumer_key(unit: bytes, consumer: str) -> bytes:
    """The account key of a consumer's quota: no two pairs share one.

    Args:
        unit: The unit's canonical bytes, or b"" under a global budget.
        consumer: The consumer's id; "" is the one account of all consumers that are not authenticated.
    """
    return len(unit).to_bytes(_LENGTH_BYTES, "big") + unit + consumer.encode()


@dataclass(frozen=True)
class Match:
    """Which releases a budget or quota pays for: a release has to fit every list that is not empty.

    Attributes:
        methods: Globs of "/package.Service/Method".
        messages: Globs, of which one has to fit the full name of the message or of a protected message in it. Wrapping
            a message in another therefore does not avoid its budget.
        directions: "request" or "response".
        labels: Globs, of which one has to fit one of the release's labels.
    """

    methods: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether it fits every release."""
        return not (self.methods or self.messages or self.directions or self.labels)

    def fits(self, method: str, messages: Iterable[str], direction: str, labels: Iterable[str]) -> bool:
        """Whether it fits a release.

        Args:
            method: "/package.Service/Method".
            messages: The full names of the message type and of the protected messages in it.
            direction: "request" or "response".
            labels: Of the method and of all these messages.
        """
        return (
            (not self.methods or matches(self.methods, method))
            and (not self.messages or any(matches(self.messages, message) for message in messages))
            and (not self.directions or direction in self.directions)
            and (not self.labels or any(matches(self.labels, label) for label in labels))
        )


def matches(globs: Iterable[str], text: str) -> bool:
    """Whether one of the globs fits a text, in which case matters."""
    return any(fnmatchcase(text, glob) for glob in globs)


def _begins(glob: str, text: str) -> bool:
    """Whether a glob can fit something that begins with a text: some beginning of the glob fits the text."""
    return any(fnmatchcase(text, glob[:end]) for end in range(1, len(glob) + 1))


@dataclass(frozen=True)
class Budget:
    """A cap on privacy loss, (epsilon, delta), over one window.

    A quota is a budget with an account for each consumer. It is charged in addition to the budget that it is under.

    Attributes:
        name: What users call it.
        key: Who has an account: "unit" (each unit) or "global" (one account for all); for quotas "unit/consumer" (each
            pair of unit and consumer) or "global/consumer" (each consumer).
        epsilon: The most loss, positive.
        delta: In (0, 1) with zcdp accounting, in [0, 1) with pure accounting, which does not use it.
        accounting: How losses add up.
        window: The length of the tumbling window in whole seconds, or None for lifetime.
        on_exhausted: What happens to a message that the budget doesn't cover.
        threshold_delta: With zcdp accounting: what the deltas of histograms without public keys may add up to, besides
            `delta`. 0 admits no such histogram.
        match: Which releases it pays for.
        under: A quota's budget; "" for a budget, and for a quota that was read from a ledger.
        consumers: Globs of the consumers that a quota is for; all if empty. "spiffe://mesh.example/part/*" is also for
            "spiffe://mesh.example", which can be any identity of that domain.
        cap: What one account may be charged in one window, as a ledger amount.

    Raises:
        ConfigError: A value is wrong; the text names the key, the value and what is allowed.
    """

    name: str
    key: Literal["unit", "global", "unit/consumer", "global/consumer"] = "unit"
    epsilon: float = 8.0
    delta: float = 1e-6
    accounting: Accounting = Accounting.ZCDP
    window: float | None = 86400.0
    on_exhausted: Literal["reject", "suppress", "replay"] = "reject"
    # Stores keep none of these: a change of what a budget pays for refills nothing.
    threshold_delta: float = 0.0
    match: Match = Match()
    under: str = ""
    consumers: tuple[str, ...] = ()
    cap: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isprintable() or not 0 < len(self.name) <= 200:
            raise ConfigError(f"{self.kind}.name: {self.name!r} must be 1 to 200 printable characters")
        self._one_of("key", KEYS)
        self._one_of("accounting", tuple(Accounting))
        self._one_of("on_exhausted", ON_EXHAUSTED)
        self._check_match()
        object.__setattr__(self, "accounting", Accounting(self.accounting))
        if self.accounting is Accounting.ZCDP and self.delta == 0:
            raise ConfigError(
                f"{self.kind} {self.name!r}: delta is missing, and zcdp, the default accounting, needs it, between 0 "
                "and 1: 1e-6 is usual. accounting = 'pure' needs none"
            )
        if not 0 <= self.threshold_delta < 1 or (self.threshold_delta and self.accounting is Accounting.PURE):
            raise ConfigError(
                f"{self.kind}.threshold_delta: {self.threshold_delta!r} ({self.kind} {self.name!r}) must be from 0 to "
                "below 1, and 0 with accounting = 'pure', which admits no delta"
            )
        try:
            check_length(self.window)
            amount = cap(self.accounting, self.epsilon, self.delta)
        except ValueError as error:
            raise ConfigError(f"{self.kind} {self.name!r}: {error}") from error
        object.__setattr__(self, "cap", amount)

    @property
    def is_quota(self) -> bool:
        """Whether it is a quota, under a budget."""
        return self.key in QUOTA_KEYS

    @property
    def kind(self) -> str:
        """What it is called in dpmesh.toml: "quota" or "budget"."""
        return "quota" if self.is_quota else "budget"

    @property
    def owner(self) -> str:
        """Whose loss it caps: "unit" or "global"."""
        return self.key.partition("/")[0]

    def unit(self, account: bytes) -> bytes:
        """The unit's canonical bytes in one of its account keys, b"" where there is none."""
        if not self.is_quota:
            return account
        return account[_LENGTH_BYTES : _LENGTH_BYTES + int.from_bytes(account[:_LENGTH_BYTES], "big")]

    def is_for(self, consumer: str) -> bool:
        """Whether a quota holds for a consumer.

        A consumer that is known by its trust domain alone, as those with rotating identities, counts as every identity
        of that domain. Otherwise it would avoid every quota for a part of the domain.
        """
        if not self.consumers or matches(self.consumers, consumer):
            return True
        return _TRUST_DOMAIN.fullmatch(consumer) is not None and any(
            _begins(glob, consumer + "/") for glob in self.consumers
        )

    def _one_of(self, key: str, allowed: Sequence[str]) -> None:
        value = getattr(self, key)
        if value not in allowed:
            raise ConfigError(
                f"{self.kind}.{key}: {value!r} ({self.kind} {self.name!r}) is not one of {', '.join(allowed)}"
            )

    def _check_match(self) -> None:
        """Refuses globs that can never fit: their budget would pay for nothing."""
        for entry in fields(self.match):
            for glob in getattr(self.match, entry.name):
                if not isinstance(glob, str) or not glob or glob != glob.strip():
                    self._bad(
                        entry.name, glob, "every entry must be a word, or a glob with * or ?, without spaces"
                    )
        for glob in self.match.methods:
            if not glob.startswith(("/", *_WILDCARDS)):
                self._bad("methods", glob, 'a method is "/package.Service/Method", with * for any part')
        for glob in self.match.messages:
            if glob.startswith(".") or "/" in glob:
                self._bad("messages", glob, 'a message is "package.Message", with * for any part')
        for direction in self.match.directions:
            if direction not in DIRECTIONS:
                self._bad("directions", direction, f"allowed: {', '.join(DIRECTIONS)}")
        for glob in self.consumers:
            if not isinstance(glob, str):
                self._bad("consumers", glob, 'every entry must be a name, a glob with * or ?, or ""')
            part = _LOWER_CASE.match(glob)
            if part is not None and part[0] != part[0].lower():
                self._bad("consumers", glob, f"no consumer has capitals in {part[0]!r}")

    def _bad(self, key: str, value: object, allowed: str) -> None:
        raise ConfigError(f"{self.kind}.{key}: {value!r} ({self.kind} {self.name!r}): {allowed}")


def check_names(budgets: Sequence[Budget]) -> None:
    """Checks that no two budgets or quotas share a name.

    Raises:
        ConfigError: Two share one.
    """
    names = [budget.name for budget in budgets]
    for budget in budgets:
        if names.count(budget.name) > 1:
            raise ConfigError(
                f"{budget.kind}.name: {budget.name!r} occurs twice; every budget and quota needs a name of its own"
            )


def parents(budgets: Sequence[Budget]) -> dict[int, int]:
    """For each quota, the budget that it is under, both by index.

    Raises:
        ConfigError: A quota is under no budget, or would not cap a part of what its budget admits: it is larger, or has
            another owner, accounting, window or direction.
    """
    known = {budget.name: index for index, budget in enumerate(budgets) if not budget.is_quota}
    found = {}
    for index, quota in enumerate(budgets):
        if not quota.is_quota:
            continue
        if quota.under not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(
                f"quota.under: {quota.under!r} (quota {quota.name!r}) is no budget; there are {listed}"
            )
        budget = budgets[known[quota.under]]
        for key in ("owner", "accounting", "window"):
            if getattr(quota, key) != getattr(budget, key):
                raise ConfigError(
                    f"quota.{key}: that of quota {quota.name!r} is not budget {budget.name!r}'s"
                )
        excluded = [
            direction
            for direction in quota.match.directions
            if budget.match.directions and direction not in budget.match.directions
        ]
        if excluded:
            raise ConfigError(
                f"quota.directions: {excluded[0]!r} (quota {quota.name!r}) is none that budget {budget.name!r} pays "
                f"for; allowed: {', '.join(budget.match.directions)}"
            )
        if quota.cap > budget.cap:
            raise ConfigError(
                f"quota.epsilon: {quota.epsilon!r} (quota {quota.name!r}) is more than the {budget.epsilon!r} of "
                f"budget {budget.name!r}; allowed: at most that"
            )
        found[index] = known[quota.under]
    return found


def similar(name: str, names: Iterable[str]) -> list[str]:
    """The names that a name may have been renamed to, or is misspelled from, most similar first."""
    from difflib import get_close_matches  # only where there is something to warn of

    plain = {_letters(other): other for other in names}
    return [plain[other] for other in get_close_matches(_letters(name), plain)]


def _letters(name: str) -> str:
    """A name in lower case, without what stands between words."""
    return re.sub(r"[\W_]", "", name.casefold()) or name


def stored_terms(budget: Budget) -> tuple[str, str, float, float, str, int | None, str]:
    """What a store keeps of a budget, in the order in which Budget takes it."""
    window = None if budget.window is None else int(budget.window)
    epsilon, delta = float(budget.epsilon), float(budget.delta)
    return budget.name, budget.key, epsilon, delta, budget.accounting.value, window, budget.on_exhausted


def check_unchanged(stored: Budget, configured: Budget) -> None:
    """Checks that a budget means the same as when its ledger first saw it.

    Epsilon and delta may change, and a window's length: the window in force ends as it began.

    Raises:
        ConfigError: Its key or accounting differ, or only one of them is for a lifetime, which would refill it.
    """
    for key in ("key", "accounting", "window"):
        old, new = getattr(stored, key), getattr(configured, key)
        if key == "window" and None not in (old, new):
            continue
        if old != new:
            terms = ["lifetime" if value is None else str(value) for value in (old, new)]
            until = "for ever" if stored.window is None else "until its window is over"
            raise ConfigError(
                f"{configured.kind}.{key}: {terms[1]!r} for {configured.kind} {stored.name!r}, which the ledger holds "
                f"with {terms[0]!r}. Changing it would refill what is spent, and so would a new name: restore the old "
                f"value. To change it anyway, add a {configured.kind} of another name, and keep this one beside "
                f"it {until}"
            )


def check_adoptable(stored: Budget, configured: Budget) -> None:
    """Checks that a ledger that is open may adopt other terms of a budget.

    Raises:
        ConfigError: As by `check_unchanged`; or it is for a lifetime, and its cap would rise.
    """
    check_unchanged(stored, configured)
    if stored.window is None and configured.cap > stored.cap:
        raise ConfigError(
            f"{configured.kind}.epsilon: {configured.epsilon!r} with delta {configured.delta!r} for "
            f"{configured.kind} {stored.name!r}, which the ledger holds with {stored.epsilon!r} and {stored.delta!r}: "
            "larger caps begin with the next window, and a lifetime has none. Restore the old values; "
            "`dpmesh budget grant` raises the cap of one account"
        )


def check_threshold_delta(before: Budget, after: Budget) -> None:
    """Checks that no more delta of histograms may leave under other terms, while charges by the old ones go on.

    Such a histogram is charged the part of the cap that its delta is of threshold_delta. Under a larger cap, charges by
    the smaller one would be too small.

    Raises:
        ConfigError: threshold_delta rises, or it is used and the cap rises.
    """
    rises = after.threshold_delta > before.threshold_delta > 0
    if rises or (before.threshold_delta and after.cap > before.cap):
        raise ConfigError(
            f"{after.kind}.{'threshold_delta' if rises else 'epsilon'}: it rises for {after.kind} {after.name!r}, "
            "which has a threshold_delta. That can't change while releases are under way: start anew with it"
        )
