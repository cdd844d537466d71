"""`dpmesh policy key | init | sign | publish | halt | rotate`: what the officers of a fleet do with signed policies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dpmesh import extras
from dpmesh.cli.console import InputError, note, say
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from dpmesh.rollout.tuf_repository import PolicyRepository

_T = TypeVar("_T")

Repo = Annotated[
    Path, typer.Option("--repo", metavar="DIR", help="The repository's folder.", show_default=False)
]
_SOON = 30 * 86400
_RENEWALS = {
    "root": "dpmesh policy rotate renews it",
    "targets": "dpmesh policy sign without a file renews it",
    "rings": "dpmesh policy publish --rings-key renews it",
}
KEY = "A private key: the file of `dpmesh policy key`, or the URI of a signer such as awskms:ARN."
OnlineKey = Annotated[
    str, typer.Option("--key", metavar="KEY", help=f"The online key. {KEY}", show_default=False)
]
RingsKey = Annotated[
    str, typer.Option("--rings-key", metavar="KEY", help="The private key for rings.", show_default=False)
]


def key(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The private key's file. FILE.pub is the public key's."),
    ],
) -> None:
    """Make a key. FILE stays with its owner; FILE.pub goes to the person who runs `dpmesh policy init`."""
    tuf_keys = _module("tuf_keys")
    tuf_keys.create(file)
    say(f"{file}: a private key. Keep it, and show it to nobody.", f"{file}.pub: its public key.")


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The repository's folder, which the command makes.")
    ],
    fleet: Annotated[
        str,
        typer.Option("--fleet", metavar="NAME", help="The fleet's name. Other fleets refuse its policies."),
    ],
    roots: Annotated[
        list[Path],
        typer.Option(
            "--root", metavar="FILE.pub", help="A public key that may change all keys; may be repeated."
        ),
    ],
    root_keys: Annotated[
        list[str],
        typer.Option("--root-key", metavar="KEY", help=f"A root key that signs now; may be repeated. {KEY}"),
    ],
    officers: Annotated[
        list[Path],
        typer.Option("--officer", metavar="FILE.pub", help="An officer's public key; may be repeated."),
    ],
    online: Annotated[
        Path,
        typer.Option(
            "--online", metavar="FILE.pub", help="The public key that `publish` uses every few days."
        ),
    ],
    rings: Annotated[
        Path | None,
        typer.Option(
            "--rings",
            metavar="FILE.pub",
            help="The public key that chooses how much of the fleet takes a policy.",
            show_default=False,
        ),
    ] = None,
    root_threshold: Annotated[
        int, typer.Option("--root-threshold", min=1, help="How many root keys have to sign a change of keys.")
    ] = 1,
    officer_threshold: Annotated[
        int,
        typer.Option(
            "--officer-threshold",
            min=1,
            help="How many officers have to sign a policy. A looser one needs two.",
        ),
    ] = 1,
) -> None:
    """Make a repository of signed policies, and root.json, by which devices trust it."""
    tuf_keys = _module("tuf_keys")

    public = [tuf_keys.read_public(path) for path in roots]
    _repository(folder).create(
        fleet,
        roots=public,
        root_signers=[tuf_keys.signer(name, public, "root") for name in root_keys],
        root_threshold=root_threshold,
        officers=[tuf_keys.read_public(path) for path in officers],
        officer_threshold=officer_threshold,
        online=tuf_keys.read_public(online),
        rings=None if rings is None else tuf_keys.read_public(rings),
    )
    say(f"{folder}: a repository of policies for the fleet {fleet}")
    say(f"Every image needs {folder / 'metadata' / '1.root.json'} as its root.json ([policy] root).")
    say(f"Next: dpmesh policy sign policy.yaml --repo {folder} --key OFFICER")
    say(
        f"      dpmesh policy publish --repo {folder} --key ONLINE{'' if rings is None else ' --rings-key RINGS'}"
    )


def sign(
    repo: Repo,
    officer: Annotated[
        str, typer.Option("--key", metavar="KEY", help=f"An officer's key. {KEY}", show_default=False)
    ],
    policy: Annotated[
        Path | None,
        typer.Argument(
            metavar="POLICY",
            help="The new policy. Without it, the policy that waits gets another signature; if none waits, the "
            "published one is renewed.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Why. A looser policy needs one.", show_default=False),
    ] = "",
    not_before: Annotated[
        str,
        typer.Option(
            "--not-before",
            metavar="TIME",
            help="Devices wait until then: 2026-01-31T08:00Z.",
            show_default=False,
        ),
    ] = "",
    rings: Annotated[
        Path | None,
        typer.Option(
            "--rings",
            metavar="FILE.pub",
            help="Another public key for rings, from now on.",
            show_default=False,
        ),
    ] = None,
    protos: Annotated[
        list[Path] | None,
        typer.Option(
            "--proto", metavar="PROTO", help=".proto files, or folders, to compare on.", show_default=False
        ),
    ] = None,
    includes: inputs.Includes = None,
    descriptor_sets: inputs.DescriptorSets = None,
    config_file: inputs.ConfigFile = None,
) -> None:
    """Sign a policy that shall be published, after a look at what it changes."""
    from dpmesh import config as configuration

    repository, looser = _repository(repo), False
    waiting = repository.staged()
    if protos or descriptor_sets:
        content = None if waiting is None else (waiting.path, waiting.content)
        if policy is not None:
            content = policy.name, _bytes(policy)
        if content is not None:
            sources = inputs.load(protos, includes, descriptor_sets, "")
            settings = configuration.load(inputs.config_file(config_file))
            looser = _show_difference(repository, content, settings, sources, reason or _reason(waiting))
            if looser and policy is None and not _custom(waiting).get("looser"):
                raise InputError(
                    "the policy is looser, and the first officer did not see it: remove staged/, and sign its file anew"
                )
    elif policy is not None:
        say(
            "without --proto nobody checks whether the policy fits the protos, and what it makes looser; "
            "devices refuse a looser one that one officer signed"
        )
    at = _time(not_before) if not_before else 0
    if waiting is not None:
        _show_terms(waiting)
    staged = repository.stage(
        policy,
        officer,
        not_before=at,
        reason=reason,
        looser=looser,
        rings=None if rings is None else _module("tuf_keys").read_public(rings),
    )
    say(
        f"{staged.path}, epoch {_custom(staged)['epoch']}: signed by {staged.signers} of {staged.threshold} officers"
    )
    if staged.signers < staged.threshold:
        say(f"Next: another officer runs dpmesh policy sign --repo {repo} --key OFFICER")
    else:
        say(f"Next: dpmesh policy publish --repo {repo} --key ONLINE")


def publish(
    repo: Repo,
    online: OnlineKey,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            metavar="PART",
            help="How much of the fleet takes the newest policy, 0.05 to 1; by default as before, and all of it for "
            "a new policy.",
            show_default=False,
        ),
    ] = None,
    rings_key: RingsKey = "",
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="Leave a policy that waits, and renew what is published; for a cron job."
        ),
    ] = False,
    old_key: Annotated[
        str,
        typer.Option(
            "--old-key",
            metavar="KEY",
            help="The online key of the root before, while a next root with another one waits.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Publish the policy that was signed; or say once more that there is nothing newer, for another seven days."""
    repository = _repository(repo)
    if renew and share is not None:
        raise InputError("--renew changes no --share")
    epoch = repository.publish(online, share=share, rings=rings_key, renew=renew, before=old_key)
    part = "" if share is None else f", for {share:.0%} of the fleet"
    say(f"epoch {epoch} is published{part}; devices trust it for 7 days: publish again before")
    for role, end in repository.ends().items():
        if end < time.time() + _SOON:
            note(
                f"{role}.json ends at {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC: {_RENEWALS[role]}"
            )


def halt(repo: Repo, online: OnlineKey, rings_key: RingsKey) -> None:
    """Let no further device take the newest policy. Those that have taken it keep it: go back by a new epoch."""
    repository = _repository(repo)
    epoch = repository.halt(online, rings_key)
    say(f"epoch {epoch} is halted: no further device takes it")


def rotate(
    repo: Repo,
    keys: Annotated[
        list[str],
        typer.Option("--key", metavar="KEY", help=f"A root key, old or new; may be repeated. {KEY}"),
    ],
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add", metavar="ROLE=FILE.pub", help="A key to add; may be repeated.", show_default=False
        ),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            "--drop", metavar="ROLE=FILE.pub", help="A key to take away; may be repeated.", show_default=False
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold", metavar="ROLE=N", help="How many keys sign; may be repeated.", show_default=False
        ),
    ] = None,
) -> None:
    """Make the next root, with other keys; or sign the one that waits. ROLE: root, targets, snapshot, timestamp."""
    repository = _repository(repo)
    tuf_keys = _module("tuf_keys")

    def pairs(given: list[str] | None, read: Callable[[str], _T]) -> list[tuple[str, _T]]:
        return [(role, read(value)) for role, _, value in (each.partition("=") for each in given or ())]

    def public(path: str) -> Key:
        found: Key = tuf_keys.read_public(Path(path))
        return found

    for line in repository.waiting_changes():
        say(f"the root that waits: {line}")
    missing = repository.rotate(
        keys, add=pairs(add, public), drop=pairs(drop, public), thresholds=pairs(threshold, _number)
    )
    if missing:
        say(
            f"the next root waits for {missing} more signatures: dpmesh policy rotate --repo {repo} --key ROOT"
        )
    else:
        waits = (repo / "staged" / "root.json").exists()
        say(
            "the next root has its signatures. Other keys have to sign what is published, so it waits."
            if waits
            else "the next root is published; devices take it at their next look"
        )
        if waits:
            say(f"Next: an officer of the next root runs dpmesh policy sign --repo {repo} --key OFFICER")
            say(f"      dpmesh policy publish --repo {repo} --key ONLINE --old-key ONLINE-BEFORE")


COMMANDS: Sequence[tuple[Callable[..., None], str]] = (
    (key, "Example: dpmesh policy key alice.key"),
    (
        init,
        "Example: dpmesh policy init repo --fleet cars --root root.key.pub --root-key root.key --officer alice.key.pub "
        "--officer bob.key.pub --online online.key.pub",
    ),
    (sign, "Example: dpmesh policy sign policy.yaml --repo repo --key alice.key --proto protos"),
    (publish, "Example: dpmesh policy publish --repo repo --key online.key"),
    (halt, "Example: dpmesh policy halt --repo repo --key online.key --rings-key rings.key"),
    (rotate, "Example: dpmesh policy rotate --repo repo --key root.key --drop targets=bob.key.pub"),
)
"""The commands, each with its example."""


def _module(name: str) -> Any:
    """A module of the signed repositories, which need packages of their own.

    Raises:
        InputError: They are not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"dpmesh.rollout.{name}")
    except ImportError:
        raise InputError(f"signed policies need more packages: {extras.install('policy')}") from None


def _repository(folder: Path) -> PolicyRepository:
    found: PolicyRepository = _module("tuf_repository").PolicyRepository(folder)
    return found


def _bytes(path: Path) -> bytes:
    from dpmesh.policy import overlay_file

    return overlay_file.read_bytes(path)


def _custom(staged: Any) -> dict[str, Any]:
    found: dict[str, Any] = staged.metadata.signed.targets[staged.path].custom
    return found


def _show_terms(waiting: Any) -> None:
    """Prints what an officer signs beside the policy that waits."""
    custom = _custom(waiting)
    try:
        begins = datetime.fromtimestamp(float(custom.get("not_before", 0)), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise InputError("what waits has no valid time: remove staged/, and sign the policy anew") from None
    when = f"{begins:%Y-%m-%d %H:%M} UTC" if begins.timestamp() > 0 else "at once"
    say(f"{waiting.path} waits: it begins {when}; reason: {str(custom.get('reason') or 'none')!r}")


def _reason(waiting: Any) -> str:
    return "" if waiting is None else str(_custom(waiting).get("reason", ""))


def _time(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InputError("--not-before: a time with its zone, such as 2026-01-31T08:00Z")
    return math.ceil(found.timestamp())


def _number(text: str) -> int:
    if not text.isdecimal():
        raise InputError("--threshold: a number, such as targets=2")
    return int(text)


def _show_difference(
    repository: PolicyRepository, new: tuple[str, bytes], settings: Any, sources: Any, reason: str
) -> bool:
    """Prints what a policy changes in those that devices may have, and asks for what a looser one needs.

    Returns:
        Whether it is looser.
    """
    from dpmesh import config as configuration
    from dpmesh.cli.commands import policy_differences
    from dpmesh.policy import Policy, overlay_file
    from dpmesh.rollout.difference import Order
    from dpmesh.rollout.policy_order import Terms, compare

    def terms(found: tuple[str, bytes]) -> Terms:
        policy = Policy(overlay_file.parse_bytes(found[1], found[0]))
        own = configuration.with_policy(settings, policy.document)
        return Terms(policy, tuple(configuration.budgets(own)), own.mode)

    after, elements = terms(new), sources.elements()
    unresolved = after.policy.unresolved_overlays(sources.pool)
    if unresolved:
        raise InputError(f"{new[0]}: no proto has {', '.join(unresolved)}; dpmesh check says where")
    for message in elements.messages:
        after.policy.plan(message)
    looser = False
    for before in map(terms, repository.in_force()):
        say(f"compared with epoch {before.policy.document.epoch}:")
        found = compare(before, after, elements)
        policy_differences.write(found)
        looser = looser or found.order is Order.LOOSER
    if looser and not reason:
        raise InputError("the policy is looser: say why with --reason, which every ledger records")
    return looser
