"""Loads the configuration: a TOML file or a mapping, overridden by the environment, as a Config."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from dpmesh.config.environment import override
from dpmesh.config.explain import explain
from dpmesh.config.model import BAGGAGE_KEYS, IN_MEMORY, Config, budgets, max_offline_seconds, poll_seconds
from dpmesh.config.redaction import quoted
from dpmesh.errors import ConfigError
from dpmesh.ledger.backends import relative_file, sqlite_url


def load(
    source: str | Path | Mapping[str, Any] | None, environment: Mapping[str, str] | None = None
) -> Config:
    """Reads the configuration.

    Args:
        source: A TOML file's path, the same content as a mapping, or None for the defaults.
        environment: Variables that override it; os.environ when absent.

    Returns:
        The configuration, with the paths of policy files and of an SQLite ledger made absolute.

    Raises:
        ConfigError: The file can't be read, a key or a value is wrong, or `budgets` refuses a budget. The text names
            the key and the value, and says what is allowed. Or there is no ledger at the configured path, but one in
            the working directory.
    """
    if isinstance(source, (str, Path)):
        name, document = str(source), _read(Path(source))
        base = Path(source).resolve().parent
    else:
        name, document, base = "configuration", _copied(source or {}), Path.cwd()
    override(document, os.environ if environment is None else environment)
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {explain(str(error), document)}") from None
    check_names(config, name)
    _check_metadata(config, name)
    signed = config.policy.is_signed
    if "://" in config.policy.source and not signed:
        raise ConfigError(
            f"{name}: policy.source: {quoted(config.policy.source)}: allowed: the path of a file, "
            "tuf+https://host/path or tuf+file:///folder"
        )
    if config.policy.push and not config.policy.source:
        raise ConfigError(f"{name}: policy.push tells when to look at policy.source: add that")
    for key in ("file", "source", "root", "cache"):
        path = getattr(config.policy, key)
        if path and not (signed and key == "source") and path != IN_MEMORY:
            policy = msgspec.structs.replace(config.policy, **{key: str(base / path)})
            config = msgspec.structs.replace(config, policy=policy)
    try:
        budgets(config)
        poll_seconds(config)
        max_offline_seconds(config)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    ledger = msgspec.structs.replace(config.ledger, url=_absolute_url(config.ledger.url, base))
    return msgspec.structs.replace(config, ledger=ledger)


def _absolute_url(url: str, base: Path) -> str:
    """A ledger's URL with an absolute path.

    Earlier versions kept the file in the working directory. If it is still there, a new ledger at the right path would
    refill every budget.

    Raises:
        ConfigError: The working directory holds a ledger, and the URL's path does not.
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
    """Whether a path holds a ledger, or the witness of one that is gone."""
    return any(os.path.lexists(f"{path}{suffix}") for suffix in ("", "-witness"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        where = "" if path.is_absolute() else "; the path starts in the working directory"
        raise ConfigError(f"{path}: can't be read ({error.strerror}){where}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_metadata(config: Config, source: str) -> None:
    for key in config.grpc.pass_metadata:
        if key.lower() in BAGGAGE_KEYS:
            raise ConfigError(
                f"{source}: grpc.pass_metadata = {quoted(key)}: it may carry anything, so it never leaves with "
                "protected messages; allow a key of your own, and send what you need under that"
            )


def check_names(config: Config, source: str) -> None:
    """Checks the names of budgets and quotas, and that each quota is under one of the budgets.

    Args:
        config: Its budgets and quotas.
        source: What to call it in errors.

    Raises:
        ConfigError: A name is malformed or taken, or a quota's budget does not exist.
    """
    entries = [("budget", entry.name) for entry in config.budget]
    entries += [("quota", entry.name) for entry in config.quota]
    names = [name for _, name in entries]
    for section, name in entries:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ConfigError(
                f"{source}: {section}.name = {quoted(name)}: letters, digits, '.', '_' and '-', at most 63"
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
                f"{source}: quota.under = {quoted(quota.under)} (quota {quota.name!r}): no budget has this name; "
                f"allowed: {allowed}"
            )
