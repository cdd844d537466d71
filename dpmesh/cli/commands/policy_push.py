"""`dpmesh policy serve` and `dpmesh policy status`: the push service, and what it counted."""

from __future__ import annotations

import asyncio
import logging
import math
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli.console import FOUND, OK, InputError, print_json, say, stdout, table
from dpmesh.cli.options import inputs
from dpmesh.errors import ConfigError, IdentityError, RolloutStoreError

if TYPE_CHECKING:
    from dpmesh.rollout.push.counts import EpochCounts
    from dpmesh.rollout.push.halting import Round

Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help="What devices reported: sqlite:///FILE, or postgresql://... for several services.",
    ),
]
# Seconds that the command of a halt may take. Nothing is pushed meanwhile.
_HALTING = 30.0
_STORE = "sqlite:///.dpmesh/rollout.db"


def serve(
    repository: Annotated[
        Path,
        typer.Option(
            "--repo", metavar="DIR", help="The repository with `metadata` and `targets`.", show_default=False
        ),
    ],
    identity: Annotated[
        Path,
        typer.Option(
            "--identity",
            metavar="DIR",
            help="certificate.pem, key.pem and trust_bundle.pem, as `dpmesh identity issue --server` writes them.",
            show_default=False,
        ),
    ],
    listen: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="The address to listen on; port 0 takes a free one."
        ),
    ] = "127.0.0.1:8444",
    store: Store = _STORE,
    on_halt: Annotated[
        str,
        typer.Option(
            "--on-halt",
            metavar="COMMAND",
            help="What to run, without a shell, when a roll-out goes wrong: dpmesh policy halt ...",
        ),
    ] = "",
) -> None:
    """Tell devices at once of what is published, and count which of them took it, until SIGINT or SIGTERM.

    Devices fetch policies from the repository, never from here. They also poll it, so this service may be down.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        asyncio.run(_serve(repository, identity, listen, store, shlex.split(on_halt)))
    except RolloutStoreError as error:
        raise InputError(str(error)) from None
    except IdentityError as error:
        raise InputError(f"{identity}: {error}") from None


async def _serve(repository: Path, folder: Path, listen: str, url: str, on_halt: list[str]) -> None:
    from dpmesh.identity import FileSource, RotatingIdentity
    from dpmesh.rollout.push.store import open_store
    from dpmesh_grpc.rollout.server import Publisher, RolloutService, rollout_server

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    source = FileSource(folder / "certificate.pem", folder / "key.pem", folder / "trust_bundle.pem")
    store = open_store(url)
    await store.open(create=True)
    try:
        service = RolloutService(store)
        publisher = Publisher(repository, store, service, partial(_run, on_halt) if on_halt else None)
        await publisher.look()  # What is wrong with the repository or the store is said at once.
        async with RotatingIdentity(source) as identity, rollout_server(service, identity, listen) as port:
            _check_server(folder, identity.current.certificates)
            say(f"pushing {repository} on {listen.rpartition(':')[0]}:{port}")
            sys.stdout.flush()
            looking = asyncio.create_task(publisher.run())
            await stop.wait()
            looking.cancel()
    finally:
        await store.close()


def _check_server(folder: Path, certificates: bytes) -> None:
    """Refuses a device's identity, with which no device would speak.

    Raises:
        InputError: The certificate is for clients only.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    leaf = x509.load_pem_x509_certificates(certificates)[0]
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise InputError(
            f"{folder / 'certificate.pem'}: is a device's: run `dpmesh identity issue CA --out {folder} --server`"
        )


async def _run(command: list[str], epoch: int) -> None:
    """Runs the command that halts a roll-out.

    Raises:
        ConfigError: It can't be run, takes too long, or fails.
    """
    try:
        process = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        raise ConfigError(f"--on-halt: {command[0]} can't be run ({error.strerror})") from None
    try:
        async with asyncio.timeout(_HALTING):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        raise ConfigError(f"--on-halt: {command[0]} did not end within {_HALTING:g} s") from None
    if code:
        raise ConfigError(f"--on-halt: {command[0]} ended with exit code {code}, so epoch {epoch} goes on")


def status(store: Store = _STORE, as_json: inputs.AsJson = False) -> None:
    """Show for each epoch how many devices took it, refused it and why; exit code 1 if the newest needs attention.

    It does if a device refused it or runs another document under its epoch, or if it was halted.
    """
    try:
        found = asyncio.run(_counts(store))
    except RolloutStoreError as error:
        raise InputError(str(error)) from None
    if as_json:
        print_json([each.document() for each in found])
    else:
        _write(found)
    newest = found[0] if found else None
    bad = newest is not None and (newest.refused or newest.others or newest.halted)
    raise typer.Exit(FOUND if bad else OK)


async def _counts(url: str) -> list[EpochCounts]:
    from dpmesh.rollout.push.store import open_store

    store = open_store(url)
    await store.open(create=False)
    try:
        return await store.counts()
    finally:
        await store.close()


def _write(found: list[EpochCounts]) -> None:
    shown = table(
        "epoch", "share", "took it", "refused it", "other document", "messages refused: ring", "control"
    )
    for each in found:
        last = next((answers for answers in reversed(each.rounds) if answers.ring + answers.control), None)
        shown.add_row(
            str(each.epoch),
            f"{each.share:.0%}",
            str(each.acks),
            str(each.refused),
            str(each.others),
            *_rates(last),
        )
    stdout().print(shown)
    for each in found:
        for reason, devices in sorted(each.nacks.items(), key=lambda item: -item[1]):
            say(f"epoch {each.epoch}: refused by {devices}: {reason}")
        if each.halted:
            say(f"epoch {each.epoch}: halted: {each.halted}")


def _rates(answers: Round | None) -> tuple[str, str]:
    if answers is None:
        return "", ""
    return _rate(answers.ring_refused, answers.ring), _rate(answers.control_refused, answers.control)


def _rate(refused: int, devices: int) -> str:
    """The part of devices that refused messages, and its 95 % interval."""
    from dpmesh.rollout.push.counts import rate

    estimate = rate(refused, devices)
    if estimate is None:
        return ""
    part = refused / devices
    return (
        f"{estimate:.1%} ± {2 * 1.96 * math.sqrt(max(part * (1 - part), 3 / 16) / devices):.1%} of {devices}"
    )


COMMANDS: Sequence[tuple[Callable[..., None], str]] = (
    (serve, "Example: dpmesh policy serve --repo repository --identity server"),
    (status, "Example: dpmesh policy status --store sqlite:///.dpmesh/rollout.db"),
)
"""The commands, each with its example."""
