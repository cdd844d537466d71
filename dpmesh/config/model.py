"""The sections of dpmesh.toml, and the budgets that they describe."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from dpmesh.accounting import Accounting
from dpmesh.config.redaction import quoted
from dpmesh.errors import ConfigError
from dpmesh.ledger import Budget
from dpmesh.ledger.budget import Match, parents

# Keys of metadata that carry whatever the application or its libraries put there, in lower case. No configuration lets
# them leave with protected messages.
BAGGAGE_KEYS = frozenset({"baggage", "grpc-tags-bin", "x-datadog-tags"})


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A section has no keys but the declared ones."""


class LedgerConfig(_Section, frozen=True):
    """[ledger]: where budgets live; an SQLite file's path relative to the configuration file."""

    url: str = "sqlite:///.dpmesh/ledger.db"


SIGNED = "tuf+"
"""How `[policy] source` begins if it is a repository of signed policies."""

IN_MEMORY = "memory:"
"""As `[policy] cache`: nothing is kept when the process ends."""


class PolicyConfig(_Section, frozen=True):
    """[policy]: where the policy is; paths relative to the configuration file.

    Attributes:
        file: A policy file, which is read at start. Beside a source it is the policy that the image came with: no
            policy with a smaller epoch is taken, and it is used where the source has none yet.
        source: What is followed: a policy file, or a repository of signed policies (tuf+https://host/path or
            tuf+file:///folder). Another policy there replaces the one in force.
        poll: How long to wait between two looks at the source.
        root: The root of trust of a signed source: its root.json.
        cache: The folder that keeps the policy that was taken last; "memory:": it is not kept.
        push: The push service, "host:port", that tells when to look at the source; "": there is none.
        max_offline: After how long without an answer of the source nothing may leave; "never": no such limit.
    """

    # A variable that is passed on but not set is empty. It must not remove the policy that the file names.
    file: Annotated[str, msgspec.Meta(min_length=1)] = ""
    source: Annotated[str, msgspec.Meta(min_length=1)] = ""
    poll: str = "10s"
    root: str = ""
    cache: Annotated[str, msgspec.Meta(min_length=1)] = ".dpmesh/policy"
    push: str = ""
    max_offline: str = "30d"

    @property
    def is_signed(self) -> bool:
        """Whether the source is a repository of signed policies."""
        return self.source.startswith(SIGNED)

    @property
    def folder(self) -> Path | None:
        """The folder `cache`; None if nothing is kept."""
        return None if self.cache == IN_MEMORY else Path(self.cache)


class GrpcConfig(_Section, frozen=True):
    """[grpc]: what may leave although no rule protects it.

    Attributes:
        pass_metadata: Keys of metadata that leave a server even where responses are protected, and a client even with
            protected requests. An `authorization` that names the caller needs it.
        pass_status_details: Whether status details leave a server even where responses are protected.
        pass_unjudged: Globs of methods that no loaded proto declares. Objects that are not protobuf messages leave
            these as they are; on all other methods they are refused while any rule is in force.
    """

    pass_metadata: tuple[str, ...] = ()
    pass_status_details: bool = False
    pass_unjudged: tuple[str, ...] = ()


class BudgetConfig(_Section, frozen=True):
    """[[budget]]: a cap on privacy loss over one window; with lists, of the releases that match all of them."""

    name: str
    epsilon: float
    key: Literal["unit", "global"] = "unit"
    delta: float = 0.0
    threshold_delta: float = 0.0
    accounting: Literal["pure", "zcdp"] = "zcdp"
    window: str = "24h"
    on_exhausted: Literal["reject", "suppress", "replay"] = "reject"
    methods: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    directions: tuple[Literal["request", "response"], ...] = ()
    labels: tuple[str, ...] = ()


class QuotaConfig(_Section, frozen=True):
    """[[quota]]: a smaller cap for each consumer under a budget. The budget decides all that the quota lacks."""

    name: str
    under: str
    epsilon: float
    # An empty list looks like "nobody", and would mean "all" to Budget.
    consumers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ()
    methods: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    directions: tuple[Literal["request", "response"], ...] = ()
    labels: tuple[str, ...] = ()
    on_exhausted: Literal["reject", "suppress", "replay"] | None = None


_SHORTEST_POLL = 0.1

# The budgets without a configuration: one a day for each unit, and one a day for all aggregates.
DEFAULT_BUDGETS = (
    BudgetConfig(name="unit-daily", key="unit", epsilon=8.0, accounting="pure"),
    BudgetConfig(name="global-daily", key="global", epsilon=8.0, delta=1e-6),
)


class Config(_Section, frozen=True):
    """The whole of dpmesh.toml.

    Attributes:
        mode: "enforce", or "observe": accounts and traces, but changes no message.
        ledger: Where budgets live.
        policy: Overlays.
        grpc: What may leave although no rule protects it.
        budget: All budgets, in order.
        quota: All quotas, in order.
    """

    mode: Literal["enforce", "observe"] = "enforce"
    ledger: LedgerConfig = LedgerConfig()
    policy: PolicyConfig = PolicyConfig()
    grpc: GrpcConfig = GrpcConfig()
    budget: tuple[BudgetConfig, ...] = DEFAULT_BUDGETS
    quota: tuple[QuotaConfig, ...] = ()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerConfig,
    "policy": PolicyConfig,
    "grpc": GrpcConfig,
}
LISTED: dict[str, type[msgspec.Struct]] = {"budget": BudgetConfig, "quota": QuotaConfig}
# By the name of the section; "" is the top.
STRUCTS: dict[str, type[msgspec.Struct]] = {"": Config, **LISTED, **SECTIONS}


def key_types(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The type of each key's value, without its constraints."""
    types = {entry.name: entry.type for entry in msgspec.structs.fields(struct)}
    return {key: get_args(kind)[0] if get_origin(kind) is Annotated else kind for key, kind in types.items()}


def budgets(config: Config) -> list[Budget]:
    """All budgets for the ledger, and after them all quotas.

    Raises:
        ConfigError: A number is out of range, a list can fit nothing, or a quota exceeds its budget.
    """
    result = [
        Budget(
            name=entry.name,
            key=entry.key,
            epsilon=entry.epsilon,
            delta=entry.delta,
            threshold_delta=entry.threshold_delta,
            accounting=Accounting(entry.accounting),
            window=seconds(entry.window, f"budget {entry.name!r}: window"),
            on_exhausted=entry.on_exhausted,
            match=_match(entry),
        )
        for entry in config.budget
    ]
    by_name = {budget.name: budget for budget in result}
    result += [_quota(entry, by_name[entry.under]) for entry in config.quota]
    parents(result)
    return result


def _quota(entry: QuotaConfig, budget: Budget) -> Budget:
    return Budget(
        name=entry.name,
        key="unit/consumer" if budget.key == "unit" else "global/consumer",
        epsilon=entry.epsilon,
        delta=budget.delta,
        threshold_delta=budget.threshold_delta,
        accounting=budget.accounting,
        window=budget.window,
        on_exhausted=entry.on_exhausted or budget.on_exhausted,
        match=_match(entry),
        under=budget.name,
        consumers=entry.consumers,
    )


def _match(entry: BudgetConfig | QuotaConfig) -> Match:
    return Match(entry.methods, entry.messages, entry.directions, entry.labels)


def poll_seconds(config: Config) -> float:
    """The time between two looks at the policy's source, in seconds.

    Raises:
        ConfigError: It is no length of time, or shorter than 0.1 s.
    """
    try:
        length = seconds(config.policy.poll, "policy.poll")
    except ConfigError:
        length = None
    if length is None or length < _SHORTEST_POLL:
        raise ConfigError(
            f'policy.poll: {quoted(config.policy.poll)}: allowed: a length from "0.1s" on, such as "10s" or "5m"'
        )
    return length


def max_offline_seconds(config: Config) -> float | None:
    """How long the policy's source may be silent, in seconds; None for ever.

    Raises:
        ConfigError: It is neither a length of time nor "never".
    """
    if config.policy.max_offline == "never":
        return None
    with suppress(ConfigError):
        length = seconds(config.policy.max_offline, "policy.max_offline")
        if length is not None:
            return length
    raise ConfigError(
        f'policy.max_offline: {quoted(config.policy.max_offline)}: allowed: "never", or a length such as "12h" or "30d"'
    )


def seconds(window: str, key: str) -> float | None:
    """The length of a window such as "90s", "15m", "24h" or "7d", in seconds; None for "lifetime".

    Args:
        window: The text.
        key: What to call its key in errors.

    Raises:
        ConfigError: The text is no window.
    """
    if window == "lifetime":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)", window.strip())
    length = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if length <= 0:
        raise ConfigError(
            f'{key}: {quoted(window)} is not a window; allowed: "lifetime", or a length such as "90s", "15m", "24h"'
        )
    return length
