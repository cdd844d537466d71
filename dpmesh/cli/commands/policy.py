"""`dpmesh policy`: compares, signs, publishes and pushes policies, and shows what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli.app import require_command
from dpmesh.cli.commands import policy_differences, policy_officers, policy_push
from dpmesh.cli.console import FOUND, OK, print_json
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from dpmesh.config import Config
    from dpmesh.report.sources import Sources
    from dpmesh.rollout.policy_order import Terms

app = typer.Typer(
    add_completion=False,
    help="Compare policies, sign them, publish them to a fleet, and show which devices took them.",
    epilog="Example: dpmesh policy diff old.yaml new.yaml protos/acme/fleet.proto",
)


app.callback(invoke_without_command=True)(require_command)
for _command, _example in (*policy_officers.COMMANDS, *policy_push.COMMANDS):
    app.command(epilog=_example)(_command)


@app.command(epilog="Example: dpmesh policy diff old.yaml new.yaml protos/acme/fleet.proto -I protos")
def diff(
    old: Annotated[Path, typer.Argument(help="The policy file that holds.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="The policy file that shall replace it.", show_default=False)],
    protos: inputs.Protos = None,
    includes: inputs.Includes = None,
    descriptor_sets: inputs.DescriptorSets = None,
    reflect: inputs.Reflect = "",
    config_file: inputs.ConfigFile = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Say of each difference between two policies whether it is looser; exit code 1 if one is.

    Tighter: no promise gets weaker. Other: no promise gets weaker, but values have another law, or messages another
    cost. Looser: a promise gets weaker, or nobody can tell. Budgets that a policy does not have are those of the
    configuration.
    """
    from dpmesh import config as configuration
    from dpmesh.rollout import policy_order
    from dpmesh.rollout.difference import Order

    settings = configuration.load(inputs.config_file(config_file))
    sources = inputs.load(protos, includes, descriptor_sets, reflect)
    found = policy_order.compare(
        _terms(old, settings, sources), _terms(new, settings, sources), sources.elements()
    )
    if as_json:
        print_json(found.document())
    else:
        policy_differences.write(found)
    raise typer.Exit(FOUND if found.order is Order.LOOSER else OK)


def _terms(path: Path, settings: Config, sources: Sources) -> Terms:
    from dpmesh import config as configuration
    from dpmesh.rollout.policy_order import Terms

    policy = inputs.policy(path, sources)
    settings = configuration.with_policy(settings, policy.document)
    return Terms(policy, tuple(configuration.budgets(settings)), settings.mode)
