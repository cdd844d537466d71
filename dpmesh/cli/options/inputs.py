"""The options of commands that load protos, policies and configurations, and how these are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli.console import InputError

if TYPE_CHECKING:
    from dpmesh.config import Config
    from dpmesh.policy import Policy
    from dpmesh.report.sources import Sources

Protos = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PROTO", help=".proto files, or folders of them.", show_default=False),
]
Includes = Annotated[
    list[Path] | None,
    typer.Option(
        "-I",
        "--include",
        metavar="DIR",
        help="What imports are relative to; may be repeated. dpmesh's and Google's own protos are always found.",
        show_default=False,
    ),
]
DescriptorSets = Annotated[
    list[Path] | None,
    typer.Option(
        "--descriptor-set",
        metavar="FILE",
        help="A FileDescriptorSet (protoc -o, or buf build) instead of .proto files; may be repeated. Only with "
        "protoc's --include_source_info are annotations found that are set twice.",
        show_default=False,
    ),
]
Reflect = Annotated[
    str,
    typer.Option(
        "--reflect",
        metavar="HOST:PORT",
        help="A live server with reflection (no TLS) instead of .proto files.",
        show_default=False,
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="The policy in YAML or JSON; by default that of the configuration.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="dpmesh.toml; by default the one in the working directory, or else the embedded defaults.",
        show_default=False,
    ),
]


def load(
    protos: Sequence[Path] | None,
    includes: Sequence[Path] | None,
    descriptor_sets: Sequence[Path] | None,
    reflect: str,
) -> Sources:
    """Loads the descriptors from one kind of input.

    Raises:
        InputError: No kind or several kinds were given, or the input can't be read.
    """
    if sum(map(bool, (protos, descriptor_sets, reflect))) != 1:
        raise InputError("give .proto files, or --descriptor-set, or --reflect: one of them (see --help)")
    if includes and not protos:
        raise InputError("-I goes with .proto files only")
    if reflect:
        from dpmesh.cli.descriptors.reflection import from_server

        return from_server(reflect)
    from dpmesh.cli.descriptors import sources

    if descriptor_sets:
        return sources.from_descriptor_sets(descriptor_sets)
    return sources.from_protos(protos or (), includes or ())


def config_file(given: Path | None) -> Path | None:
    """The given configuration file, or dpmesh.toml in the working directory if it exists."""
    default = Path("dpmesh.toml")
    return given or (default if default.is_file() else None)


def policy_file(given: Path | None, settings: Config) -> Path | None:
    """The given policy file, or the configuration's, relative to the working directory if it is inside."""
    # A repository's policy is what each device has taken; the file is the one that images have.
    signed = settings.policy.is_signed
    configured = settings.policy.file if signed else settings.policy.source or settings.policy.file
    if given is not None or not configured:
        return given
    path, here = Path(configured), Path.cwd()
    path = path.relative_to(here) if path.is_relative_to(here) else path
    if not signed and configured == settings.policy.source:
        _check_end(path)
    return path


def _check_end(path: Path) -> None:
    """Refuses a followed file that devices refuse because it may be half written."""
    from dpmesh.policy import overlay_file
    from dpmesh.rollout.file_source import check_end

    check_end(overlay_file.read_bytes(path), path)


def policy(path: Path | None, sources: Sources) -> Policy:
    """The policy of the sources, with the overlays of a file.

    Raises:
        InputError: An annotation is set twice, of which only the last one would count; or an overlay names no element
            of the sources.
    """
    from dpmesh.policy import Policy

    for location, duplicate in sources.duplicates:
        raise InputError(f"{location}: {duplicate.error()}")
    found = Policy(path)
    unresolved = found.unresolved_overlays(sources.pool)
    if unresolved:
        raise InputError(f"{path}: no proto has {', '.join(unresolved)}; dpmesh check says where")
    return found
