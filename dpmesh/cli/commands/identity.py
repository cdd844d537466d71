"""`dpmesh identity`: makes an authority, issues identities from it, and shows its state."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmesh import files
from dpmesh.cli.console import InputError, print_json, say, stdout, table
from dpmesh.cli.options import inputs
from dpmesh.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpmesh.identity.ca.folder import Folder

app = typer.Typer(
    add_completion=False,
    help="Make an authority, issue identities from it, and show its state.",
    epilog="Example: dpmesh identity init ca --trust-domain mesh.example",
)

# Minutes. A stolen key is soon worthless, and a device gets by while its issuer restarts.
_SHORTEST, _LONGEST = 10.0, 60.0

FolderPath = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The authority's folder.", show_default=False)
]
Minutes = Annotated[
    float,
    typer.Option(
        "--minutes", min=_SHORTEST, max=_LONGEST, help="How long each certificate is valid, 10 to 60."
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Its first line is the password of root.key.",
        show_default=False,
    ),
]


@app.command("init", epilog="Example: dpmesh identity init ca --trust-domain mesh.example")
def init(
    folder: FolderPath,
    trust_domain: Annotated[
        str,
        typer.Option("--trust-domain", metavar="NAME", help="The fleet's name: a host name in lower case."),
    ],
    password_file: PasswordFile = None,
) -> None:
    """Make a root, an intermediate that may only issue for this trust domain, and empty records of devices."""
    from dpmesh.identity.ca.folder import create_folder

    with _input_errors():
        create_folder(folder, trust_domain, now=time.time(), password=_password(password_file))
    say(f"{folder}: an authority for {trust_domain}")
    say(f"Take {folder / 'root.key'} away now; only `dpmesh identity renew` needs it back.")
    say(f"Every device and server needs {folder / 'root.pem'}, by which they know each other.")
    say(f"Next: dpmesh identity serve {folder} --listen 0.0.0.0:8443, and for each device:")
    say(f"      dpmesh identity token {folder}")


@app.command("token", epilog="Example: dpmesh identity token ca --hours 1")
def token(
    folder: FolderPath,
    hours: Annotated[
        float, typer.Option("--hours", min=0.01, max=24 * 30, help="How long the token is valid.")
    ] = 1,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="ID",
            help="A known device, which enrols again.",
            show_default=False,
        ),
    ] = "",
    server: Annotated[
        bool,
        typer.Option("--server", help="For a server: its certificates have the trust domain as DNS name."),
    ] = False,
    as_json: inputs.AsJson = False,
) -> None:
    """Print a token with which one device enrols, once. Its holder becomes that device: hand it over in secret.

    The command also prints the device's id. Keep it: it is needed to revoke the device, or to enrol it again.
    """
    with _opened(folder) as opened:
        made = opened.enrolments.invite(
            now=time.time(), life=hours * 3600, device=device or None, server=server
        )
    if as_json:
        print_json({"token": made.token, "device": made.device})
    else:
        say(f"token   {made.token}", f"device  {made.device}")


@app.command("revoke", epilog="Example: dpmesh identity revoke ca DEVICE")
def revoke(
    folder: FolderPath,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The id that `token` printed.")],
) -> None:
    """Issue nothing more to a device. Its present certificate stays valid until it ends, in minutes."""
    with _opened(folder) as opened:
        opened.enrolments.revoke(device)
    say("revoked")


@app.command("issue", epilog="Example: dpmesh identity issue ca --out server --server --minutes 60")
def issue(
    folder: FolderPath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the three files go.")],
    server: Annotated[
        bool, typer.Option("--server", help="For a server: with the trust domain as DNS name.")
    ] = False,
    minutes: Minutes = 30.0,
) -> None:
    """Write a certificate, its key and the trust bundle to files, for programs that can't ask an issuer.

    Run it again in time (by cron, say): dpmesh.identity.FileSource follows the files. Keys on a disk outlive their use,
    so prefer `serve` and enrolment.
    """
    from dpmesh.identity.ca.authority import LocalSource

    with _opened(folder) as opened:
        source = LocalSource(opened.authority, life=minutes * 60, server=server)
        identity = asyncio.run(source.fetch())
    parts = {
        out / "certificate.pem": identity.certificates,
        out / "key.pem": identity.key,
        out / "trust_bundle.pem": identity.trust_bundle,
    }
    with _input_errors():
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_all(parts)
    say(f"{', '.join(map(str, parts))}: valid until {_minute(identity.not_after)}")


@app.command("renew", epilog="Example: dpmesh identity renew ca --password-file root.password")
def renew(folder: FolderPath, password_file: PasswordFile = None) -> None:
    """Renew the intermediate certificate. Put root.key back into the folder first. Devices renew as before."""
    from dpmesh.identity.ca.folder import open_root, replace_intermediate

    with _input_errors():
        root = open_root(folder, _password(password_file))
        replace_intermediate(folder, root, now=time.time())
    say(f"{folder}: a new intermediate; restart `dpmesh identity serve`, and take {folder / 'root.key'} away")


@app.command("serve", epilog="Example: dpmesh identity serve ca --listen 0.0.0.0:8443 --allowance 100")
def serve(
    folder: FolderPath,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="The address to listen on; port 0 takes a free one."
        ),
    ] = "127.0.0.1:8443",
    minutes: Minutes = 30.0,
    allowance: Annotated[
        int,
        typer.Option("--allowance", min=0, help="Anonymous tokens for a device and day; 0 signs none."),
    ] = 1024,
) -> None:
    """Enrol devices, renew their certificates and sign their anonymous tokens, until SIGINT or SIGTERM."""
    with _opened(folder) as opened, _input_errors():
        asyncio.run(_serve(folder, opened, listen, minutes * 60, allowance))


async def _serve(path: Path, opened: Folder, listen: str, life: float, allowance: int) -> None:
    from dpmesh.identity.ca.issuer import Issuer
    from dpmesh_grpc.issuer.server import issuer_server

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keys = _token_keys(path) if allowance else None
    issuer = Issuer(
        opened.authority, opened.enrolments, life=life, token_keys=keys, allowance=max(allowance, 1)
    )
    try:
        async with issuer_server(issuer, listen) as port:
            host = listen.rpartition(":")[0]
            say(f"issuing on {host}:{port}")
            sys.stdout.flush()
            await stop.wait()
    finally:
        issuer.close()


@app.command("status", epilog="Example: dpmesh identity status ca")
def status(folder: FolderPath, as_json: inputs.AsJson = False) -> None:
    """Show when the authority's certificates end, and how many devices, certificates and tokens there are."""
    from cryptography import x509

    from dpmesh.identity.identity import trust_domain

    now = time.time()
    with _opened(folder) as opened:
        intermediate = x509.load_pem_x509_certificates(opened.authority.certificates)[0]
        roots = x509.load_pem_x509_certificates(opened.authority.trust_bundle)
        counts = opened.enrolments.counts(now)
    document = {
        "trust_domain": trust_domain(roots[0]),
        "roots_end": [root.not_valid_after_utc.timestamp() for root in roots],
        "intermediate_ends": intermediate.not_valid_after_utc.timestamp(),
        **counts._asdict(),
    }
    if as_json:
        print_json(document)
        return
    rows = {
        "trust domain": document["trust_domain"],
        "roots end": ", ".join(_minute(end) for end in document["roots_end"]),
        "intermediate ends": _minute(document["intermediate_ends"]),
        "devices": f"{counts.devices} ({counts.revoked} revoked)",
        "certificates in force": str(counts.certificates),
        "enrolment tokens open": str(counts.invitations),
    }
    for name, value in rows.items():
        say(f"{name:22} {value}")


@app.command("tokens", epilog="Example: dpmesh identity tokens ca")
def tokens(folder: FolderPath, as_json: inputs.AsJson = False) -> None:
    """Show the public keys of anonymous tokens: those of this epoch and of its neighbours."""
    with _opened(folder), _input_errors():
        keys = _token_keys(folder).published(time.time())
    rows = [
        {
            "key_id": key.key_id.hex(),
            "not_before": key.not_before,
            "not_after": key.not_after,
            "public_key": key.public_key.hex(),
        }
        for key in keys
    ]
    if as_json:
        print_json(rows)
        return
    shown = table("key", "tokens are taken from", "until")
    for row in rows:
        shown.add_row(row["key_id"][:16], _minute(row["not_before"]), _minute(row["not_after"]))
    stdout().print(shown)


def _token_keys(folder: Path) -> Any:
    from dpmesh.identity.tokens.keys import TokenKeys

    return TokenKeys(folder / "tokens.json")


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turns errors about the authority's folder into InputError."""
    try:
        yield
    except IdentityError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None


@contextmanager
def _opened(path: Path) -> Iterator[Folder]:
    from dpmesh.identity.ca.folder import open_folder

    with _input_errors():
        opened = open_folder(path)
        try:
            yield opened
        finally:
            opened.enrolments.close()


def _password(file: Path | None) -> bytes | None:
    if file is None:
        return None
    with _input_errors():
        lines = file.read_bytes().splitlines()
    if not lines or not lines[0]:
        raise InputError(f"{file}: its first line, which is the password, is empty")
    return lines[0]


def _minute(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
