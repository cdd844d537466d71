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
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Recorded messages: length-delimited protobuf; JSON lines (.jsonl, .ndjson, .json); or columns with "
            "the fields' names (.parquet, .arrow, .feather).",
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
    policy_file: inputs.PolicyFile = None,
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
    policy_path = inputs.policy_file(policy_file, settings)
    sources = inputs.load(protos, includes, descriptor_sets, reflect)
    reader = _reader(sources, inputs.policy(policy_path, sources), message_type)
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
    for path in files:
        _add(summary, path, reader)
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


def _add(summary: Summary, path: Path, reader: Reader) -> None:
    from dpmesh.errors import DpmeshError

    try:
        _read(summary, path, reader)
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


def _read(summary: Summary, path: Path, reader: Reader) -> None:
    from dpmesh.cli import records

    if path.suffix in records.COLUMNS:
        for columns in records.columns(path, summary.fields):
            for name, column in columns.items():
                summary.add_column(name, column)
        return
    for batch in records.messages(path, reader.plan.descriptor):
        summary.add(batch)


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
