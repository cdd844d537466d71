"""Reads recorded messages: length-delimited protobuf, JSON lines, and columns of Parquet and Arrow files.

Errors name the file and the record, and never what it holds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from dpmesh.cli.console import InputError
from dpmesh.policy.codegen import padding

JSON, COLUMNS = frozenset({".json", ".jsonl", ".ndjson"}), frozenset({".parquet", ".arrow", ".feather"})
"""The suffixes of files that hold JSON lines or columns. All other files are length-delimited protobuf."""

MOST_BYTES = 64 * 1024 * 1024
"""The largest record."""

_BATCH = 1000


def messages(path: Path, descriptor: Descriptor, digest: str = "") -> Iterator[list[Any]]:
    """The messages of a file, some at a time: JSON lines by the file's name, or length-delimited protobuf.

    Args:
        path: The file.
        descriptor: The messages' type.
        digest: The key of JSON lines that holds the digest of their policy; "" if none does.

    Returns:
        Messages; pairs of a digest and a message, if `digest` is given.

    Raises:
        InputError: The file is empty or can't be read, or a record is cut off, of another type, or without a digest.
    """
    if digest and path.suffix not in JSON:
        raise InputError(
            f"{path}: length-delimited protobuf has no digests; name that of the file: DIGEST=FILE"
        )
    kind, count = GetMessageClass(descriptor), 0
    try:
        with path.open("rb") as file:
            read: Iterator[Any]
            read = (
                _json_lines(file, kind, path, digest) if path.suffix in JSON else _delimited(file, kind, path)
            )
            while batch := list(itertools.islice(read, _BATCH)):
                count += len(batch)
                yield batch
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if not count:
        raise InputError(f"{path}: holds no messages")


def _delimited(file: IO[bytes], kind: type[Message], path: Path) -> Iterator[Message]:
    """Records that begin with their length as a varint, as Java's writeDelimitedTo writes them."""
    for number in itertools.count(1):
        length = _length(file, path, number)
        if length is None:
            return
        content = file.read(length)
        if len(content) < length:
            raise InputError(f"{path}: record {number} is cut off")
        try:
            message = kind.FromString(content)
        except (DecodeError, UnicodeDecodeError):
            raise _other_type(path, number, kind) from None
        # The zeros of a message take no room: it may be nothing but padding.
        if content and not message.ListFields() and _unknown_fields(message) != {padding.FIELD}:
            raise _other_type(path, number, kind)
        yield message


def _unknown_fields(message: Message) -> set[int]:
    """The numbers of the fields that are set, and that the message's type does not declare."""
    fields = UnknownFieldSet(message)
    return {fields[at].field_number for at in range(len(fields))}


def _length(file: IO[bytes], path: Path, number: int) -> int | None:
    """The length of the next record; None at the end."""
    length = 0
    for shift in range(0, 35, 7):
        byte = file.read(1)
        if not byte:
            if shift:
                raise InputError(f"{path}: record {number} is cut off")
            return None
        length |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
    else:
        length = MOST_BYTES + 1
    if length > MOST_BYTES:
        text = f"record {number} has more than {MOST_BYTES >> 20} MB: is this length-delimited protobuf?"
        raise InputError(f"{path}: {text}")
    return length


def _json_lines(file: IO[bytes], kind: type[Message], path: Path, digest: str) -> Iterator[Any]:
    pool: Any = kind.DESCRIPTOR.file.pool
    for number in itertools.count(1):
        line = file.readline(MOST_BYTES + 1)
        if not line:
            return
        if len(line) > MOST_BYTES:
            raise InputError(f"{path}: record {number} has more than {MOST_BYTES >> 20} MB")
        if not line.strip():
            continue
        try:
            if not digest:
                yield json_format.Parse(line, kind(), descriptor_pool=pool)
                continue
            document = json.loads(line)
            named = document.pop(digest)
            message = json_format.ParseDict(document, kind(), descriptor_pool=pool)
        except (KeyError, AttributeError, TypeError):
            raise InputError(f"{path}: record {number} has no key {digest}") from None
        except (json_format.ParseError, ValueError, RecursionError):
            # Its text may quote values.
            raise _other_type(path, number, kind) from None
        yield named, message


def _other_type(path: Path, number: int, kind: type[Message]) -> InputError:
    return InputError(f"{path}: record {number} is no {kind.DESCRIPTOR.full_name}")


def columns(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The columns of a Parquet or Arrow file that have the names of fields, some rows at a time.

    Raises:
        InputError: The file can't be read, is empty, or has none of the columns; or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading columns needs pyarrow: pip install pyarrow") from None
    count = 0
    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                parquet = pa.parquet.ParquetFile(file)
                names, batches = parquet.schema_arrow.names, parquet.iter_batches
            else:
                arrow = pa.ipc.open_file(file)
                names = arrow.schema.names
                batches = lambda columns: map(arrow.get_batch, range(arrow.num_record_batches))  # noqa: E731
            wanted = [name for name in fields if name in names]
            if not wanted:
                raise InputError(f"{path}: has no column of the fields {', '.join(fields)}")
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise InputError(f"{path}: has several columns of the field {twice[0]}")
            for batch in batches(columns=wanted):
                count += batch.num_rows
                yield {name: batch.column(name) for name in wanted}
    except pa.ArrowException:
        raise InputError(f"{path}: is no {path.suffix.removeprefix('.')} file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if not count:
        raise InputError(f"{path}: holds no rows")
