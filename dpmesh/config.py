"""Configuration: dpmesh.toml, every key also in the environment.

A key DPMESH_SECTION_KEY overrides the file's [section] key; DPMESH_BUDGET_<NAME>_<KEY> overrides the budget of
that name, with the name in capitals and every other character than letters and digits as an underscore.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from dpmesh.accounting import Accounting
from dpmesh.errors import ConfigError
from dpmesh.ledger import Budget

_ENV_PREFIX = "DPMESH_"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all sections share: no key but the declared ones."""


class LedgerConfig(_Section, frozen=True):
    """[ledger]: where budgets live."""

    url: str = "sqlite:///.dpmesh/ledger.db"


class PolicyConfig(_Section, frozen=True):
    """[policy]: overlays for protos that one can't edit; a path relative to the configuration file."""

    file: str = ""


class GrpcConfig(_Section, frozen=True):
    """[grpc]: what else than messages may leave a server on methods whose response is protected."""

    pass_metadata: tuple[str, ...] = ()
    pass_status_details: bool = False


class BudgetConfig(_Section, frozen=True):
    """[[budget]]: a cap on privacy loss over one window."""

    name: str
    epsilon: float
    key: Literal["unit", "global"] = "unit"
    delta: float = 0.0
    accounting: Literal["pure", "zcdp"] = "zcdp"
    window: str = "24h"
    on_exhausted: Literal["reject", "suppress"] = "reject"


# What `dpmesh.open()` uses without a configuration: a day's budget per unit, and one for aggregates.
DEFAULT_BUDGETS = (
    BudgetConfig(name="unit-daily", key="unit", epsilon=8.0, accounting="pure"),
    BudgetConfig(name="global-daily", key="global", epsilon=8.0, delta=1e-6),
)


class Config(_Section, frozen=True):
    """The whole of dpmesh.toml.

    Attributes:
        mode: enforce, or observe: account and trace, and change nothing.
        ledger: Where budgets live.
        policy: Overlays.
        grpc: What else than messages may leave a server.
        budget: All budgets, in order.
    """

    mode: Literal["enforce", "observe"] = "enforce"
    ledger: LedgerConfig = LedgerConfig()
    policy: PolicyConfig = PolicyConfig()
    grpc: GrpcConfig = GrpcConfig()
    budget: tuple[BudgetConfig, ...] = DEFAULT_BUDGETS


def load(
    source: str | Path | Mapping[str, Any] | None, environment: Mapping[str, str] | None = None
) -> Config:
    """Reads the configuration.

    Args:
        source: A TOML file's path, the same content as a mapping, or None for the defaults.
        environment: What overrides it; os.environ when absent.

    Returns:
        The configuration, with the policy file's path made absolute.

    Raises:
        ConfigError: A file that can't be read, a wrong key or a wrong value. The text names the key and the value,
            and says what is allowed.
    """
    if isinstance(source, (str, Path)):
        name, document = str(source), _read(Path(source))
        base = Path(source).resolve().parent
    else:
        name, document, base = "configuration", _copied(source or {}), Path.cwd()
    _override(document, os.environ if environment is None else environment)
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(str(error), document)}") from None
    _check_names(config, name)
    if config.policy.file:
        found = msgspec.structs.replace(config.policy, file=str(base / config.policy.file))
        config = msgspec.structs.replace(config, policy=found)
    return config


def budgets(config: Config) -> list[Budget]:
    """The budgets as the ledger takes them.

    Raises:
        ConfigError: A number is out of range.
    """
    return [
        Budget(
            name=entry.name,
            key=entry.key,
            epsilon=entry.epsilon,
            delta=entry.delta,
            accounting=Accounting(entry.accounting),
            window=seconds(entry.window, f"budget {entry.name!r}: window"),
            on_exhausted=entry.on_exhausted,
        )
        for entry in config.budget
    ]


def seconds(window: str, key: str) -> float | None:
    """A window's length: a number with s, m, h or d, or None for "lifetime".

    Raises:
        ConfigError: It is neither.
    """
    if window == "lifetime":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)", window.strip())
    length = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if length <= 0:
        raise ConfigError(
            f'{key}: {window!r} is not a window; allowed: "lifetime", or a length such as "90s", "15m", "24h"'
        )
    return length


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _override(document: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Writes the environment's DPMESH_ keys into the document."""
    for variable in sorted(name for name in environment if name.startswith(_ENV_PREFIX)):
        words = variable.removeprefix(_ENV_PREFIX).lower()
        text = environment[variable]
        section, _, key = words.partition("_")
        if words == "mode":
            document["mode"] = text
        elif section == "budget":
            _override_budget(document, variable, key, text)
        elif key and section in _SECTIONS:
            if key not in _SECTIONS[section].__struct_fields__:
                raise ConfigError(
                    _unknown(
                        variable,
                        text,
                        [f"{_ENV_PREFIX}{section}_{k}".upper() for k in _SECTIONS[section].__struct_fields__],
                    )
                )
            into = document.setdefault(section, {})
            if isinstance(into, dict):  # if not, the document is refused for that
                into[key] = _typed(_SECTIONS[section], key, text, variable)
        else:
            known = [f"{_ENV_PREFIX}{name}_..." for name in ("LEDGER", "POLICY", "GRPC", "BUDGET")]
            raise ConfigError(_unknown(variable, text, [f"{_ENV_PREFIX}MODE", *known]))


def _override_budget(document: dict[str, Any], variable: str, rest: str, text: str) -> None:
    key = next((k for k in BudgetConfig.__struct_fields__ if rest.endswith(f"_{k}") and k != "name"), None)
    if key is None:
        keys = [k for k in BudgetConfig.__struct_fields__ if k != "name"]
        raise ConfigError(_unknown(variable, text, [f"{_ENV_PREFIX}BUDGET_<NAME>_{k}".upper() for k in keys]))
    slug = rest.removesuffix(f"_{key}")
    if "budget" not in document:
        document["budget"] = [msgspec.to_builtins(entry) for entry in DEFAULT_BUDGETS]
    if not isinstance(document["budget"], list):
        return  # the document is refused for that
    entries = [entry for entry in document["budget"] if isinstance(entry, dict)]
    meant = [e for e in entries if re.sub(r"[^a-z0-9]", "_", str(e.get("name", "")).lower()) == slug]
    if len(meant) != 1:
        names = ", ".join(str(entry.get("name")) for entry in entries)
        found = "two budgets have" if meant else "no budget has"
        raise ConfigError(f"{variable}: {found} this name; there are {names}")
    meant[0][key] = _typed(BudgetConfig, key, text, variable)


def _typed(section: type[msgspec.Struct], key: str, text: str, variable: str) -> Any:
    """The environment holds text; turns it into what the key holds."""
    kind = {field.name: field.type for field in msgspec.structs.fields(section)}[key]
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{variable}: {text!r} is not a number") from None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{variable}: {text!r} is neither true nor false")
        return text.lower() == "true"
    if kind == tuple[str, ...]:
        return [word.strip() for word in text.split(",") if word.strip()]
    return text


def _unknown(key: str, value: str, allowed: list[str]) -> str:
    return f"{key} = {value!r}: no such key; allowed: {', '.join(allowed)}"


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerConfig,
    "policy": PolicyConfig,
    "grpc": GrpcConfig,
}
_STRUCTS: dict[str, type[msgspec.Struct]] = {"": Config, "budget": BudgetConfig, **_SECTIONS}


def _explain(problem: str, document: Any) -> str:
    """What msgspec says, with the value at fault and the keys that are allowed there."""
    where = re.search(r" - at `\$\.?(.*)`$", problem)
    path = where[1] if where else ""
    section = re.split(r"[.\[]", path, maxsplit=1)[0]
    sentence = problem[: where.start()] if where else problem
    unknown = re.search(r"unknown field `(.*)`", sentence)
    if unknown:
        keys = ", ".join(_STRUCTS.get(section, Config).__struct_fields__)
        full = f"{path}.{unknown[1]}" if path else unknown[1]
        return f"{full} = {_at(document, full)!r}: no such key; allowed: {keys}"
    missing = re.search(r"missing required field `(.*)`", sentence)
    if missing:
        return f"{path}.{missing[1]} is missing"
    return f"{path} = {_at(document, path)!r}: {sentence}{_choices(section, path)}"


def _at(document: Any, path: str) -> Any:
    for word in re.findall(r"[^.\[\]]+", path):
        document = document[int(word)] if isinstance(document, list) else document.get(word)
    return document


def _choices(section: str, path: str) -> str:
    struct = _STRUCTS.get(section if section in _STRUCTS else "", Config)
    key = path.rsplit(".", 1)[-1]
    kind = {field.name: field.type for field in msgspec.structs.fields(struct)}.get(key)
    options = getattr(kind, "__args__", ())
    return f"; allowed: {', '.join(options)}" if options and all(isinstance(o, str) for o in options) else ""


def _check_names(config: Config, source: str) -> None:
    names = [entry.name for entry in config.budget]
    for entry in config.budget:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", entry.name):
            raise ConfigError(
                f"{source}: budget.name = {entry.name!r}: letters, digits, '.', '_' and '-', at most 63"
            )
        if names.count(entry.name) > 1:
            raise ConfigError(f"{source}: budget.name = {entry.name!r}: two budgets have this name")
