"""`dpmesh estimate`: what the senders of recorded protected messages held, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmesh.cli.console import InputError, note, print_json, stdout, table
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from dpmesh.estimate import Estimate, Reader
    from dpmesh.estimate.summary import FieldSummary, Figure, Summary
    from dpmesh.policy import Policy
    from dpmesh.report.sources import Sources

HELP = "Estimate from recorded protected messages what their senders held: means, shares, quantiles, with intervals."
EPILOG = "Example: dpmesh estimate reports.binpb --proto protos/acme/fleet.proto --type acme.v1.Report --field delay"

# The text shows so many figures of a field.
_SHOWN = 24


def estimate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Recorded messages: length-delimited protobuf; JSON lines (.jsonl, .ndjson, .json); or columns with "
            "the fields' names (.parquet, .arrow, .feather). With several policies, DIGEST=FILE names that of a file.",
            show_default=False,
        ),
    ],
    protos: Annotated[
        list[Path] | None,
        typer.Option(
            "--proto", metavar="PROTO", help=".proto files, or folders; may be repeated.", show_default=False
        ),
    ] = None,
    includes: inputs.Includes = None,
    descriptor_sets: inputs.DescriptorSets = None,
    reflect: inputs.Reflect = "",
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="The senders' policy file, if not that of dpmesh.toml. If they had several, DIGEST=FILE for each; "
            "'DIGEST=' for the annotations alone.",
            show_default=False,
        ),
    ] = None,
    digest: Annotated[
        str,
        typer.Option(
            "--digest",
            metavar="NAME",
            help="The column, or the key of JSON lines, that holds the digest of each record's policy.",
            show_default=False,
        ),
    ] = "",
    config_file: inputs.ConfigFile = None,
    message_type: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="NAME",
            help="The messages' type, such as acme.v1.Report; may be left out if only one type is protected.",
            show_default=False,
        ),
    ] = "",
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="PATH", help="A field; may be repeated. By default all.", show_default=False
        ),
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            metavar="TEXT",
            help="A text whose share is wanted, for fields that hold any text; may be repeated.",
            show_default=False,
        ),
    ] = None,
    quantiles: Annotated[
        list[float] | None,
        typer.Option(
            "--quantile",
            metavar="Q",
            help="May be repeated; by default 0.1, 0.5 and 0.9.",
            show_default=False,
        ),
    ] = None,
    bins: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Equal bins of numbers; by default as many as are told well.",
            show_default=False,
        ),
    ] = None,
    cell_km: Annotated[
        float | None,
        typer.Option(
            metavar="KM", help="Between cells of heat maps; by default some 40 cells.", show_default=False
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="How often each interval, by itself, holds.")] = 0.95,
    as_json: inputs.AsJson = False,
) -> None:
    """Prints the estimates; exit code 1 when values are refused."""
    from dpmesh import config as configuration
    from dpmesh.estimate import EstimateError
    from dpmesh.estimate.summary import Summary

    wanted = quantiles or [0.1, 0.5, 0.9]
    if not 0 < confidence < 1 or not all(0 < q < 1 for q in wanted):
        raise InputError("--confidence and --quantile must be between 0 and 1")
    settings = configuration.load(inputs.config_file(config_file))
    sources = inputs.load(protos, includes, descriptor_sets, reflect)
    several = dict(map(_named, policies or ()))
    if "" in several and (len(policies or ()) > 1 or digest):
        raise InputError("--policy: with several policies or --digest, give each as DIGEST=FILE")
    if several and "" not in several:
        reader = _pooled_reader(sources, several, message_type)
    else:
        path = inputs.policy_file(Path(several[""]) if several else None, settings)
        reader = _reader(sources, inputs.policy(path, sources), message_type)
        several = {}
        if digest:
            raise InputError("--digest needs the policies: --policy DIGEST=FILE for each")
    try:
        summary = Summary(
            reader,
            fields or (),
            candidates=candidates or (),
            bins="auto" if bins is None else bins,
            cell_km=cell_km,
        )
    except EstimateError as error:
        raise InputError(str(error)) from None
    for name in files:
        of_file, file = _named(name) if several else ("", name)
        if several and not of_file and not digest:
            raise InputError(f"{file}: name its policy: DIGEST=FILE, or --digest where records have it")
        _add(summary, Path(file), reader, of_file, digest)
    answers = list(summary.answers(quantiles=wanted, confidence=confidence))
    if as_json:
        name = reader.plan.descriptor.full_name
        print_json(
            {"message": name, "confidence": confidence, "fields": [_document(each) for each in answers]}
        )
    else:
        _write(answers, confidence)
    for field, why in summary.skipped.items():
        note(f"{field}: no estimate: {why}")


def _named(text: str) -> tuple[str, str]:
    """The digest and the file of DIGEST=FILE; without a digest, "" and the text."""
    from dpmesh.policy.required_policy import is_digest

    digest, mark, file = text.partition("=")
    return (digest, file) if mark and is_digest(digest) else ("", text)


def _pooled_reader(sources: Sources, policies: dict[str, str], name: str) -> Reader:
    """The reader of several policies, by digest."""
    from dpmesh.estimate import EstimateError, Reader

    found = {
        digest: inputs.policy(Path(file) if file else None, sources) for digest, file in policies.items()
    }
    message = _reader(sources, next(iter(found.values())), name).plan.descriptor
    try:
        return Reader(message, policies=found)
    except EstimateError as error:
        raise InputError(f"--policy: {error}") from None


def _reader(sources: Sources, policy: Policy, name: str) -> Reader:
    from dpmesh.estimate import EstimateError, Reader

    if name:
        try:
            return Reader(sources.pool.FindMessageTypeByName(name), policy)
        except KeyError:
            raise InputError(f"--type {name}: the protos have no such message type") from None
        except EstimateError as error:
            raise InputError(str(error)) from None
    plans = [policy.plan(message) for message in sources.messages()]
    protected = [plan for plan in plans if plan is not None and not plan.is_open]
    if len(protected) != 1:
        names = ", ".join(plan.descriptor.full_name for plan in protected) or "none"
        raise InputError(f"--type is needed; message types that are protected: {names}")
    return Reader(protected[0].descriptor, policy)


def _add(summary: Summary, path: Path, reader: Reader, of_file: str, digest: str) -> None:
    from dpmesh.errors import DpmeshError

    try:
        _read(summary, path, reader, of_file, digest)
    except (InputError, OSError):
        raise
    except DpmeshError as error:
        raise DpmeshError(f"{path}: {error}") from None
    except Exception as error:
        failed = type(error).__name__
    else:
        return
    # Raised outside of the handler: the text of an unexpected exception may quote a value.
    raise InputError(f"{path}: can't be read ({failed})")


def _read(summary: Summary, path: Path, reader: Reader, of_file: str, digest: str) -> None:
    """Adds the records of a file.

    Args:
        summary: Where.
        path: The file.
        reader: Of their type.
        of_file: The digest of the policy of all records; "" if they have several, or the reader has one policy.
        digest: The name of the column or key with the digest of each record.
    """
    from dpmesh.cli import records

    named = "" if of_file else digest
    if path.suffix in records.COLUMNS:
        wanted = (*summary.fields, named) if named else summary.fields
        for columns in records.columns(path, wanted):
            digests = columns.pop(named).to_pylist() if named in columns else None
            if named and digests is None:
                raise InputError(f"{path}: has no column {named}")
            for name, column in columns.items():
                summary.add_column(name, _by_digest(column, digests, of_file))
        return
    for batch in records.messages(path, reader.plan.descriptor, named):
        summary.add([(of_file, message) for message in batch] if of_file else batch)


def _by_digest(column: Any, digests: list[Any] | None, of_file: str) -> Any:
    """A column of Arrow as a reader takes it: by digest, if its policy has several."""
    if digests is None:
        return {of_file: column} if of_file else column
    rows: dict[Any, list[int]] = {}
    for row, digest in enumerate(digests):
        rows.setdefault(digest, []).append(row)
    return {digest: column.take(indexes) for digest, indexes in rows.items()}


def _document(summary: FieldSummary) -> dict[str, Any]:
    figures = [
        {"figure": each.name, "of": each.of, **_ends(each.estimate), "per_place": each.estimate.per_place}
        for each in summary.figures
    ]
    return {"field": summary.path, "kind": summary.kind, "n": summary.n, "figures": figures}


def _ends(found: Estimate) -> dict[str, float | None]:
    """The estimate and its interval. JSON has no infinities."""
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def _write(answers: Sequence[FieldSummary], confidence: float) -> None:
    console = stdout()
    for summary in answers:
        what = "maps" if summary.kind == "histogram" else "noisy values"
        console.print(f"{summary.path} ({summary.kind}): {summary.n:,} {what}", soft_wrap=True)
        shown = _largest(summary.figures)
        rows = table("    figure", "of", "estimate", f"{confidence:g} interval")
        for each in shown:
            rows.add_row(f"    {each.name}", *_cells(summary, each))
        if shown:
            console.print(rows)
        if len(shown) < len(summary.figures):
            console.print(f"    and {len(summary.figures) - len(shown)} more, which --json shows")
        console.print()


def _largest(figures: Sequence[Figure]) -> list[Figure]:
    """The figures in their order, or, where they are many, those of the largest estimates."""
    if len(figures) <= _SHOWN:
        return list(figures)
    limit = sorted((each.estimate.value for each in figures), reverse=True)[_SHOWN - 1]
    return [each for each in figures if each.estimate.value >= limit][:_SHOWN]


def _cells(summary: FieldSummary, figure: Figure) -> tuple[str, str, str]:
    """Of what the figure is, its value and its interval, as people write them: points in time as dates."""
    of, found = figure.of, figure.estimate
    word: Callable[[float], str]
    if summary.clock is not None and summary.clock.dated:
        word = partial(_date, summary.clock.unit)
    else:
        word = "{:.6g}".format
    about = "" if of is None else str(of)
    if isinstance(of, tuple):
        about = (", " if summary.kind == "location" else " to ").join(map(word, of))
    if figure.name == "share":
        word = "{:.6g}".format
    per_place = " per place" * found.per_place
    return about, word(found.value), f"[{word(found.low)}, {word(found.high)}]{per_place}"


def _date(unit: float, number: float) -> str:
    """A point in time, which counts from 1970 in units of so many seconds."""
    try:
        return datetime.fromtimestamp(number * unit, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{number:.6g}"
