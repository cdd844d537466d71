"""What a policy document decides of the configuration: its budgets, quotas and mode replace those of dpmesh.toml."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from dpmesh.config.loading import check_names
from dpmesh.config.model import BudgetConfig, Config, QuotaConfig, budgets
from dpmesh.config.redaction import quoted
from dpmesh.errors import ConfigError
from dpmesh.v1 import policy_pb2

_Entry = TypeVar("_Entry", BudgetConfig, QuotaConfig)

_SOURCE = "policy"
_MODES: dict[int, Any] = {policy_pb2.ENFORCE: "enforce", policy_pb2.OBSERVE: "observe"}


def with_policy(config: Config, policy: policy_pb2.Policy) -> Config:
    """The configuration under a policy document.

    Args:
        config: What dpmesh.toml and the environment say.
        policy: If it has budgets, they and its quotas replace all of `config`. If it has a mode, that replaces
            `config.mode`.

    Raises:
        ConfigError: A budget, a quota or the mode is wrong, or there are quotas and no budgets.
    """
    if policy.mode:
        if policy.mode not in _MODES:
            raise ConfigError("policy: mode: this version of dpmesh does not know it; upgrade dpmesh")
        config = msgspec.structs.replace(config, mode=_MODES[policy.mode])
    if policy.quotas and not policy.budgets:
        raise ConfigError(
            "policy: quotas: a policy with quotas needs the budgets that they are under; add them"
        )
    if not policy.budgets:
        return config
    config = msgspec.structs.replace(
        config,
        budget=tuple(_entry(each, BudgetConfig, "budgets", n) for n, each in enumerate(policy.budgets)),
        quota=tuple(_entry(each, QuotaConfig, "quotas", n) for n, each in enumerate(policy.quotas)),
    )
    check_names(config, _SOURCE)
    try:
        budgets(config)
    except ConfigError as error:
        raise ConfigError(f"{_SOURCE}: {error}") from None
    return config


def _entry(message: Message, struct: type[_Entry], section: str, index: int) -> _Entry:
    """One budget or quota, by the checks that dpmesh.toml has."""
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    try:
        return msgspec.convert(document, struct)
    except msgspec.ValidationError as error:
        name = quoted(document.get("name", ""))
        raise ConfigError(f"{_SOURCE}: {section}[{index}] (name {name}): {error}") from None
