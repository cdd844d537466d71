"""What errors may quote: values as they were written, without users and passwords."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dpmesh.ledger.backends import redacted_url

# Texts that may hold a user or a password: a URL, a part of one, or libpq's key words.
_URL = re.compile("://|@")
_PASSWORD = re.compile("passw", re.IGNORECASE)


def quoted(value: Any) -> str:
    """A value as it was written, without its secrets."""
    return repr(_without_secrets(value))


def quoted_key(key: str) -> str:
    """An unknown key as it was written; a URL may have been written in its place."""
    return redacted_url(key) if _URL.search(key) else key


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        value = redacted_url(value) if _URL.search(value) else value
        return "***" if _PASSWORD.search(value) else value
    if isinstance(value, Mapping):
        return {
            key: "***" if _PASSWORD.search(str(key)) else _without_secrets(item)
            for key, item in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value
