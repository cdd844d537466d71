"""Configuration: dpmesh.toml, every key also in the environment.

A key DPMESH_SECTION_KEY overrides the file's [section] key; DPMESH_BUDGET_<NAME>_<KEY> overrides the budget of
that name, with the name in capitals and every other character than letters and digits as an underscore, and
DPMESH_QUOTA_<NAME>_<KEY> the quota. Lists are written with commas, and '""' is a word without letters.

A relative path (of the policy file, of an SQLite ledger) starts in the configuration file's folder, whether the file or
the environment names it, and in the working directory where there is no file: so two working directories share one
budget.

Kubernetes gives every pod variables about every Service, and those about a Service called dpmesh begin with DPMESH_.
They are passed over. Every other unknown key is an error.

Errors show what was written, but no value of a key that is not known at the top or in [ledger], as that may be a
password under a misspelled name, and of URLs not who connects and with which password.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from dpmesh.accounting import Accounting
from dpmesh.errors import ConfigError
from dpmesh.ledger import Budget
from dpmesh.ledger.backends import relative_file, shown, sqlite_url
from dpmesh.ledger.budget import Match, parents

_log = logging.getLogger(__name__)

_ENV_PREFIX = "DPMESH_"
# What may name a user or a password: a URL, or the rest of one, or the words that libpq takes instead.
_URL = re.compile("://|@")
_PASSWORD = re.compile("passw", re.IGNORECASE)
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_LINK_NUMBER = re.compile("[0-9]{1,5}")
_LINK_PROTOCOL = re.compile("tcp|udp|sctp")
_LINK_URL = re.compile(r"(tcp|udp|sctp)://(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}")
_LINK_ADDRESS = re.compile("[0-9]{1,3}([.][0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")
# The exact forms of names, and for each that of its value.
_SERVICE_LINKS = (
    (re.compile(".+_SERVICE_HOST"), _LINK_ADDRESS),
    (re.compile(".+_SERVICE_PORT"), _LINK_NUMBER),
    (re.compile(".+_PORT"), _LINK_URL),
    (re.compile(".+_PORT_[0-9]+_(TCP|UDP|SCTP)"), _LINK_URL),
    (re.compile(".+_PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO"), _LINK_PROTOCOL),
    (re.compile(".+_PORT_[0-9]+_(TCP|UDP|SCTP)_PORT"), _LINK_NUMBER),
    (re.compile(".+_PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR"), _LINK_ADDRESS),
)
_NAMED_PORT = re.compile("(.+_SERVICE)_PORT_[A-Z0-9_]+")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all sections share: no key but the declared ones."""


class LedgerConfig(_Section, frozen=True):
    """[ledger]: where budgets live; an SQLite file's path relative to the configuration file."""

    url: str = "sqlite:///.dpmesh/ledger.db"


class PolicyConfig(_Section, frozen=True):
    """[policy]: overlays for protos that one can't edit; a path relative to the configuration file."""

    # Empty is what a variable is that nobody has set. It must not take away the rules that a file names.
    file: Annotated[str, msgspec.Meta(min_length=1)] = ""


class GrpcConfig(_Section, frozen=True):
    """[grpc]: what may leave although no rule protects it.

    Attributes:
        pass_metadata: Keys of metadata that leave a server also where responses are protected.
        pass_status_details: Status details leave a server also where responses are protected.
        pass_unjudged: Globs of methods that no loaded proto declares. On these, objects that are no protobuf messages
            leave as they are; on all others they are refused while any rule is in force.
    """

    pass_metadata: tuple[str, ...] = ()
    pass_status_details: bool = False
    pass_unjudged: tuple[str, ...] = ()


class BudgetConfig(_Section, frozen=True):
    """[[budget]]: a cap on privacy loss over one window. With lists, only of the releases that fit all of them."""

    name: str
    epsilon: float
    key: Literal["unit", "global"] = "unit"
    delta: float = 0.0
    accounting: Literal["pure", "zcdp"] = "zcdp"
    window: str = "24h"
    on_exhausted: Literal["reject", "suppress"] = "reject"
    methods: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    directions: tuple[Literal["request", "response"], ...] = ()
    labels: tuple[str, ...] = ()


class QuotaConfig(_Section, frozen=True):
    """[[quota]]: a smaller cap for each consumer under a budget, which gives it all that is not here."""

    name: str
    under: str
    epsilon: float
    # An empty list would hold for all by what Budget says, and for nobody by what it looks like.
    consumers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ()
    methods: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    directions: tuple[Literal["request", "response"], ...] = ()
    labels: tuple[str, ...] = ()
    on_exhausted: Literal["reject", "suppress"] | None = None


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
        quota: All quotas, in order.
    """

    mode: Literal["enforce", "observe"] = "enforce"
    ledger: LedgerConfig = LedgerConfig()
    policy: PolicyConfig = PolicyConfig()
    grpc: GrpcConfig = GrpcConfig()
    budget: tuple[BudgetConfig, ...] = DEFAULT_BUDGETS
    quota: tuple[QuotaConfig, ...] = ()


def load(
    source: str | Path | Mapping[str, Any] | None, environment: Mapping[str, str] | None = None
) -> Config:
    """Reads the configuration.

    Args:
        source: A TOML file's path, the same content as a mapping, or None for the defaults.
        environment: What overrides it; os.environ when absent.

    Returns:
        The configuration, with the paths of the policy file and of an SQLite ledger made absolute.

    Raises:
        ConfigError: A file that can't be read, a wrong key or a wrong value, or a budget that `budgets` refuses. The
            text names the key and the value, and says what is allowed. Or there is no ledger yet, and another one in
            the working directory.
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
    try:
        budgets(config)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    ledger = msgspec.structs.replace(config.ledger, url=_located(config.ledger.url, base))
    return msgspec.structs.replace(config, ledger=ledger)


def _located(url: str, base: Path) -> str:
    """A ledger's URL, with a relative path made absolute.

    Versions before this rule looked for the file in the working directory. Where one is left there, a new ledger in the
    right place would refill every budget.

    Raises:
        ConfigError: There is a ledger in the working directory, and none where the URL means.
    """
    relative = relative_file(url)
    if relative is None:
        return url
    path = base / relative
    try:
        old = relative.absolute()
    except FileNotFoundError:  # the working directory was removed
        return sqlite_url(path)
    if not _is_there(path) and _is_there(old):
        raise ConfigError(
            f"ledger.url: {url!r} starts in the configuration file's folder, and there is no ledger at {path}. But "
            f"there is one in the working directory, {old}, where earlier versions kept it. If it is this "
            "configuration's, end its holders and move it, with all files whose names begin like its own. If it is "
            "not, write an absolute path"
        )
    return sqlite_url(path)


def _is_there(path: Path) -> bool:
    """Whether there is a ledger at a path, or the witness of one that is gone."""
    return any(os.path.lexists(f"{path}{suffix}") for suffix in ("", "-witness"))


def budgets(config: Config) -> list[Budget]:
    """The budgets as the ledger takes them, and after them the quotas.

    Raises:
        ConfigError: A number is out of range, a list can fit nothing, or a quota exceeds its budget.
    """
    found = [
        Budget(
            name=entry.name,
            key=entry.key,
            epsilon=entry.epsilon,
            delta=entry.delta,
            accounting=Accounting(entry.accounting),
            window=seconds(entry.window, f"budget {entry.name!r}: window"),
            on_exhausted=entry.on_exhausted,
            match=_match(entry),
        )
        for entry in config.budget
    ]
    known = {budget.name: budget for budget in found}
    found += [_quota(entry, known[entry.under]) for entry in config.quota]
    parents(found)
    return found


def _quota(entry: QuotaConfig, budget: Budget) -> Budget:
    return Budget(
        name=entry.name,
        key="unit/consumer" if budget.key == "unit" else "global/consumer",
        epsilon=entry.epsilon,
        delta=budget.delta,
        accounting=budget.accounting,
        window=budget.window,
        on_exhausted=entry.on_exhausted or budget.on_exhausted,
        match=_match(entry),
        under=budget.name,
        consumers=entry.consumers,
    )


def _match(entry: BudgetConfig | QuotaConfig) -> Match:
    return Match(entry.methods, entry.messages, entry.directions, entry.labels)


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
            f'{key}: {_shown(window)} is not a window; allowed: "lifetime", or a length such as "90s", "15m", "24h"'
        )
    return length


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        where = "" if path.is_absolute() else "; the path starts in the working directory"
        raise ConfigError(f"{path}: can't be read ({error.strerror}){where}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:  # TOML's and UTF-8's own errors, and what int() says of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _override(document: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Writes the environment's DPMESH_ keys into the document."""
    links = []
    for variable in sorted(name for name in environment if name.startswith(_ENV_PREFIX)):
        try:
            _override_key(document, variable, environment[variable])
        except ConfigError:
            if not _is_service_link(variable, environment):
                raise
            links.append(variable)
    if links:
        _log.warning(
            "passed over variables that Kubernetes makes of Services, which are no keys of the configuration: %s "
            "(enableServiceLinks: false in the pod's spec keeps them away)",
            ", ".join(links),
        )


def _override_key(document: dict[str, Any], variable: str, text: str) -> None:
    """Writes one key of the environment into the document.

    Raises:
        ConfigError: There is no such key, or the text is no value of it.
    """
    words = variable.removeprefix(_ENV_PREFIX).lower()
    section, _, key = words.partition("_")
    if words == "mode":
        document["mode"] = text
    elif section in _LISTED:
        _override_entry(document, section, variable, key, text)
    elif key and section in _SECTIONS:
        if key not in _SECTIONS[section].__struct_fields__:
            keys = _SECTIONS[section].__struct_fields__
            raise ConfigError(_unknown(variable, [f"{_ENV_PREFIX}{section}_{k}".upper() for k in keys]))
        into = document.setdefault(section, {})
        if isinstance(into, dict):  # if not, the document is refused for that
            into[key] = _typed(_SECTIONS[section], key, text, variable)
    else:
        known = [f"{_ENV_PREFIX}{name}_..." for name in ("LEDGER", "POLICY", "GRPC", "BUDGET", "QUOTA")]
        raise ConfigError(_unknown(variable, [f"{_ENV_PREFIX}MODE", *known]))


def _is_service_link(variable: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable that is no key has the exact form, in name and value, of one that Kubernetes makes.

    A Service's ports may have any names, also those of keys. Such a variable counts only beside the Service's address,
    which Kubernetes always gives too.
    """
    text = environment[variable]
    if any(name.fullmatch(variable) and value.fullmatch(text) for name, value in _SERVICE_LINKS):
        return True
    port = _NAMED_PORT.fullmatch(variable)
    address = environment.get(f"{port[1]}_HOST", "") if port else ""
    return bool(_LINK_NUMBER.fullmatch(text) and _LINK_ADDRESS.fullmatch(address))


def _override_entry(document: dict[str, Any], section: str, variable: str, rest: str, text: str) -> None:
    """Overrides a key of the budget or the quota that the variable names."""
    keys = [key for key in _LISTED[section].__struct_fields__ if key != "name"]
    key = next((k for k in keys if rest.endswith(f"_{k}")), None)
    if key is None:
        allowed = [f"{_ENV_PREFIX}{section}_<NAME>_{k}".upper() for k in keys]
        raise ConfigError(_unknown(variable, allowed))
    slug = rest.removesuffix(f"_{key}")
    if section == "budget" and "budget" not in document:
        document["budget"] = [msgspec.to_builtins(entry) for entry in DEFAULT_BUDGETS]
    listed = document.setdefault(section, [])
    if not isinstance(listed, list):
        return  # the document is refused for that
    entries = [entry for entry in listed if isinstance(entry, dict)]
    meant = [e for e in entries if re.sub(r"[^a-z0-9]", "_", str(e.get("name", "")).lower()) == slug]
    if len(meant) != 1:
        names = ", ".join(str(entry.get("name")) for entry in entries) or "none"
        found = f"two {section}s have" if meant else f"no {section} has"
        raise ConfigError(f"{variable}: {found} this name; there are {names}")
    meant[0][key] = _typed(_LISTED[section], key, text, variable)


def _typed(section: type[msgspec.Struct], key: str, text: str, variable: str) -> Any:
    """The environment holds text; turns it into what the key holds."""
    kind = _kinds(section)[key]
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{variable}: {_shown(text)} is not a number") from None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{variable}: {_shown(text)} is neither true nor false")
        return text.lower() == "true"
    if get_origin(kind) is tuple:
        words = [word.strip() for word in text.split(",") if word.strip()]
        if key == "consumers" and not words:
            raise ConfigError(
                f"{variable}: {text!r} names nobody; allowed: globs, or '\"\"' for whoever is not authenticated; "
                "without the variable, the file decides, and without a list there, the quota is for all"
            )
        return ["" if word == '""' else word for word in words]
    return text


def _kinds(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """What each key holds, without what else is asked of it."""
    kinds = {entry.name: entry.type for entry in msgspec.structs.fields(struct)}
    return {key: get_args(kind)[0] if get_origin(kind) is Annotated else kind for key, kind in kinds.items()}


def _unknown(key: str, allowed: list[str]) -> str:
    """Says that there is no such key; its value may be a password."""
    return f"{key}: no such key; allowed: {', '.join(allowed)}"


def _shown(value: Any) -> str:
    """A value as it was written, without what is secret in URLs."""
    return repr(_without_secrets(value))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        value = shown(value) if _URL.search(value) else value
        return "***" if _PASSWORD.search(value) else value
    if isinstance(value, Mapping):
        return {
            key: "***" if _PASSWORD.search(str(key)) else _without_secrets(item)
            for key, item in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerConfig,
    "policy": PolicyConfig,
    "grpc": GrpcConfig,
}
_LISTED: dict[str, type[msgspec.Struct]] = {"budget": BudgetConfig, "quota": QuotaConfig}
_STRUCTS: dict[str, type[msgspec.Struct]] = {"": Config, **_LISTED, **_SECTIONS}


def _explain(problem: str, document: Any) -> str:
    """What msgspec says, with the value at fault and the keys that are allowed there."""
    where = re.search(r" - at `\$\.?(.*)`$", problem)
    path = where[1] if where else ""
    section = re.split(r"[.\[]", path, maxsplit=1)[0]
    sentence = problem[: where.start()] if where else problem
    unknown = re.search(r"unknown field `(.*)`", sentence, re.DOTALL)
    if unknown:
        key = shown(unknown[1]) if _URL.search(unknown[1]) else unknown[1]
        full = f"{path}.{key}" if path else key
        keys = list(_STRUCTS.get(section, Config).__struct_fields__)
        if section in ("", "ledger"):
            return _unknown(full, keys)
        return (
            f"{full} = {_shown(_at(document, path).get(unknown[1]))}: no such key; allowed: {', '.join(keys)}"
        )
    missing = re.search(r"missing required field `(.*)`", sentence)
    if missing:
        return f"{path}.{missing[1]} is missing"
    value = _at(document, path)
    # Of a word that is none of those that are allowed, the sentence repeats it.
    sentence = re.sub(r"^Invalid enum value .*$", "not one of the words", sentence, flags=re.DOTALL)
    return f"{path} = {_shown(value)}: {sentence}{_choices(section, path)}"


def _at(document: Any, path: str) -> Any:
    for word in re.findall(r"[^.\[\]]+", path):
        document = document[int(word)] if isinstance(document, list) else document.get(word)
    return document


def _choices(section: str, path: str) -> str:
    struct = _STRUCTS.get(section if section in _STRUCTS else "", Config)
    key = path.rsplit(".", 1)[-1].partition("[")[0]
    kind = _kinds(struct).get(key)
    options = _literals(kind)
    return f"; allowed: {', '.join(options)}" if options else ""


def _literals(kind: Any) -> list[str]:
    """The words of a Literal, also in a tuple of them or beside None."""
    if get_origin(kind) is Literal:
        return [option for option in get_args(kind) if isinstance(option, str)]
    if get_origin(kind) in (tuple, Union, UnionType):
        return [option for part in get_args(kind) for option in _literals(part)]
    return []


def _check_names(config: Config, source: str) -> None:
    entries = [("budget", entry.name) for entry in config.budget]
    entries += [("quota", entry.name) for entry in config.quota]
    names = [name for _, name in entries]
    for section, name in entries:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ConfigError(
                f"{source}: {section}.name = {_shown(name)}: letters, digits, '.', '_' and '-', at most 63"
            )
        if names.count(name) > 1:
            same = {kind for kind, other in entries if other == name}
            two = f"two {section}s" if len(same) == 1 else "a budget and a quota"
            raise ConfigError(f"{source}: {section}.name = {name!r}: {two} have this name")
    known = [entry.name for entry in config.budget]
    for quota in config.quota:
        if quota.under not in known:
            allowed = ", ".join(known) or "none, because there is no budget"
            raise ConfigError(
                f"{source}: quota.under = {_shown(quota.under)} (quota {quota.name!r}): no budget has this name; "
                f"allowed: {allowed}"
            )
