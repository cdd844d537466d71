"""The list of commands. The module of a command is imported when the command is called."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dpmesh.cli.console import UNUSABLE, say, say_help

# In the order of --help: the command, and its line there.
COMMANDS = {
    "check": "Find what is wrong with annotations and overlays, with file and line.",
    "plan": "Show what leaves with each RPC, at what loss and error, and how long budgets last.",
    "estimate": "Estimate from recorded protected messages what their senders held, with intervals.",
    "protos": "Print the include path of dpmesh's .proto files.",
    "budget": "Show what is spent and what is left, as the ledger has it; export it; grant more.",
    "ledger": "Make a ledger's tables, check and show its charge log, and move it.",
    "policy": "Compare policies, sign them, publish them to a fleet, and show who took them.",
    "identity": "Make an authority, issue identities from it, and show its state.",
    "demo": "The fleet example, start to finish, in one terminal.",
}


class Commands(TyperGroup):
    """A group that imports a command only when it is called."""

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """Resolves the name, and replaces the placeholder by the command."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def load(name: str) -> Any:
    """A command: its module's `app` if it has one, else the function that has its name."""
    module = importlib.import_module(f"dpmesh.cli.commands.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name, help=getattr(module, "HELP", None), epilog=getattr(module, "EPILOG", None))(
            getattr(module, name)
        )
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from dpmesh import __version__

        say(f"dpmesh {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Differential privacy on the wire between machines.",
    epilog="Example: dpmesh check protos/acme/fleet.proto -I protos",
)


def require_command(context: typer.Context) -> None:
    """Prints help if there is no command."""
    if context.invoked_subcommand is None:
        say_help(context)
        raise typer.Exit(UNUSABLE)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prints the version, or help if there is no command."""
    require_command(context)


def _placeholder() -> None:
    """Stands for a command that is not imported yet."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_placeholder)
