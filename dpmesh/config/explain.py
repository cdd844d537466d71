"""Errors about the configuration: which key is wrong, what was written there, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dpmesh.config.model import STRUCTS, Config, key_types
from dpmesh.config.redaction import quoted, quoted_key


def unknown_key(key: str, allowed: Sequence[str], value: str = "") -> str:
    """The error about an unknown key, with the nearest one that there is.

    Args:
        key: The key, with its section in front.
        allowed: The keys that there are.
        value: What was written there, unless it may be a password.
    """
    import difflib  # only errors need it

    close = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    near = f"; did you mean {close[0]}?" if close else ""
    return f"{key}{value and f' = {value}'}: no such key; allowed: {', '.join(allowed)}{near}"


def explain(problem: str, document: Any) -> str:
    """What msgspec complains about, with the value at fault and the keys or words that are allowed there.

    Args:
        problem: The text of msgspec's ValidationError.
        document: What it validated.
    """
    where = re.search(r" - at `\$\.?(.*)`$", problem)
    path = where[1] if where else ""
    section = re.split(r"[.\[]", path, maxsplit=1)[0]
    sentence = problem[: where.start()] if where else problem
    unknown = re.search(r"unknown field `(.*)`", sentence, re.DOTALL)
    if unknown:
        key = quoted_key(unknown[1])
        full = f"{path}.{key}" if path else key
        # The value of an unknown key here may be a password.
        value = "" if section in ("", "ledger") else quoted(_at(document, path).get(unknown[1]))
        return unknown_key(full, STRUCTS.get(section, Config).__struct_fields__, value)
    missing = re.search(r"missing required field `(.*)`", sentence)
    if missing:
        return f"{path}.{missing[1]} is missing"
    value = _at(document, path)
    # This sentence would repeat the value.
    sentence = re.sub(r"^Invalid enum value .*$", "not one of the words", sentence, flags=re.DOTALL)
    return f"{path} = {quoted(value)}: {sentence}{_choices(section, path)}"


def _at(document: Any, path: str) -> Any:
    for word in re.findall(r"[^.\[\]]+", path):
        document = document[int(word)] if isinstance(document, list) else document.get(word)
    return document


def _choices(section: str, path: str) -> str:
    struct = STRUCTS.get(section if section in STRUCTS else "", Config)
    key = path.rsplit(".", 1)[-1].partition("[")[0]
    kind = key_types(struct).get(key)
    options = _literals(kind)
    return f"; allowed: {', '.join(options)}" if options else ""


def _literals(kind: Any) -> list[str]:
    """The words of a Literal, also in a tuple of them or beside None."""
    if get_origin(kind) is Literal:
        return [option for option in get_args(kind) if isinstance(option, str)]
    if get_origin(kind) in (tuple, Union, UnionType):
        return [option for part in get_args(kind) for option in _literals(part)]
    return []
