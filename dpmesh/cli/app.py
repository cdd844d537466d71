"""The command line's tree: each command lives in a module of its own, imported when it is called."""

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
    "protos": "Print the include path of dpmesh's .proto files.",
    "budget": "Show what is spent and what is left, from the ledger itself; export it; grant more.",
    "ledger": "Make a ledger's tables, check its charge log, move it, and look into it.",
    "identity": "Make an authority, issue identities from it, and see how they stand.",
    "demo": "The fleet example, start to finish, in one terminal.",
}


class Commands(TyperGroup):
    """Holds the names and help lines of all commands, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """Puts the real command in the place of its entry in the list."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def load(name: str) -> Any:
    """A command: its module's `app` if it has one, else its function of the same name."""
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


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Without a command there is only help."""
    if context.invoked_subcommand is None:
        say_help(context)
        raise typer.Exit(UNUSABLE)


def _listed() -> None:
    """Stands in the list of commands for one that is not imported yet."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_listed)
