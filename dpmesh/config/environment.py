"""Environment variables that override keys of the configuration."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, get_origin

import msgspec

from dpmesh.config.explain import unknown_key
from dpmesh.config.model import DEFAULT_BUDGETS, LISTED, SECTIONS, key_types
from dpmesh.config.redaction import quoted
from dpmesh.errors import ConfigError

_log = logging.getLogger(__name__)

_ENV_PREFIX = "DPMESH_"
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_LINK_NUMBER = re.compile("[0-9]{1,5}")
_LINK_PROTOCOL = re.compile("tcp|udp|sctp")
_LINK_URL = re.compile(r"(tcp|udp|sctp)://(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}")
_LINK_ADDRESS = re.compile("[0-9]{1,3}([.][0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")
# The exact form of a variable's name, and that of its value.
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


def override(document: dict[str, Any], environment: Mapping[str, str]) -> None:
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
    """Writes one key of the environment into the document; an unknown key or a wrong value raises ConfigError."""
    words = variable.removeprefix(_ENV_PREFIX).lower()
    section, _, key = words.partition("_")
    if words == "mode":
        document["mode"] = text
    elif section in LISTED:
        _override_entry(document, section, variable, key, text)
    elif key and section in SECTIONS:
        if key not in SECTIONS[section].__struct_fields__:
            keys = SECTIONS[section].__struct_fields__
            raise ConfigError(unknown_key(variable, [f"{_ENV_PREFIX}{section}_{k}".upper() for k in keys]))
        into = document.setdefault(section, {})
        if isinstance(into, dict):  # Validation refuses anything else.
            into[key] = _typed(SECTIONS[section], key, text, variable)
    else:
        known = [f"{_ENV_PREFIX}{name}_..." for name in ("LEDGER", "POLICY", "GRPC", "BUDGET", "QUOTA")]
        raise ConfigError(unknown_key(variable, [f"{_ENV_PREFIX}MODE", *known]))


def _is_service_link(variable: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable that is no key has the exact form, in name and value, of one that Kubernetes makes.

    A Service's ports may have the names of keys. The variable of such a port counts only beside the Service's address,
    which Kubernetes always sets, too.
    """
    text = environment[variable]
    if any(name.fullmatch(variable) and value.fullmatch(text) for name, value in _SERVICE_LINKS):
        return True
    port = _NAMED_PORT.fullmatch(variable)
    address = environment.get(f"{port[1]}_HOST", "") if port else ""
    return bool(_LINK_NUMBER.fullmatch(text) and _LINK_ADDRESS.fullmatch(address))


def _override_entry(document: dict[str, Any], section: str, variable: str, rest: str, text: str) -> None:
    """Overrides a key of the budget or the quota that the variable names."""
    keys = [key for key in LISTED[section].__struct_fields__ if key != "name"]
    key = next((k for k in keys if rest.endswith(f"_{k}")), None)
    if key is None:
        allowed = [f"{_ENV_PREFIX}{section}_<NAME>_{k}".upper() for k in keys]
        raise ConfigError(unknown_key(variable, allowed))
    slug = rest.removesuffix(f"_{key}")
    if section == "budget" and "budget" not in document:
        document["budget"] = [msgspec.to_builtins(entry) for entry in DEFAULT_BUDGETS]
    listed = document.setdefault(section, [])
    if not isinstance(listed, list):
        return  # Validation refuses it.
    entries = [entry for entry in listed if isinstance(entry, dict)]
    named = [e for e in entries if re.sub(r"[^a-z0-9]", "_", str(e.get("name", "")).lower()) == slug]
    if len(named) != 1:
        names = ", ".join(str(entry.get("name")) for entry in entries) or "none"
        found = f"two {section}s have" if named else f"no {section} has"
        raise ConfigError(f"{variable}: {found} this name; there are {names}")
    named[0][key] = _typed(LISTED[section], key, text, variable)


def _typed(section: type[msgspec.Struct], key: str, text: str, variable: str) -> Any:
    """Converts the text of a variable to the type of its key."""
    kind = key_types(section)[key]
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{variable}: {quoted(text)} is not a number") from None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{variable}: {quoted(text)} is neither true nor false")
        return text.lower() == "true"
    if get_origin(kind) is tuple:
        words = [word.strip() for word in text.split(",") if word.strip()]
        if key == "consumers" and not words:
            raise ConfigError(
                f"{variable}: {text!r} names nobody; allowed: globs, or '\"\"' for all that are not authenticated; "
                "without the variable, the file decides, and without a list there, the quota is for all"
            )
        return ["" if word == '""' else word for word in words]
    return text
