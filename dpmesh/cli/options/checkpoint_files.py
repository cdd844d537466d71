"""Files of signed checkpoints, as `dpmesh ledger verify` reads them."""

from __future__ import annotations

from pathlib import Path

from dpmesh.cli.console import InputError
from dpmesh.cli.options import key_files
from dpmesh.errors import LedgerError
from dpmesh.ledger.audit.checkpoint import Checkpoint


def read(path: Path, public_key: Path) -> tuple[Checkpoint, str]:
    """A checkpoint, and what is wrong with its signature; "" if it is good.

    Raises:
        InputError: One of the files can't be read, or is something else.
    """
    key = key_files.read_public(public_key)
    try:
        found = Checkpoint.from_json(key_files.read(path).decode())
    except (LedgerError, UnicodeDecodeError):
        raise InputError(f"{path}: not a checkpoint of a dpmesh ledger, or one of another version") from None
    try:
        found.check(key)
    except LedgerError as error:
        return found, f"{path}: {error}"
    return found, ""
