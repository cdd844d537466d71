"""The command `dpmesh`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process: 0 ok, 1 findings or refused, 2 usage or unreadable input.

    Args:
        arguments: The command line; by default the process's own.
    """
    from dpmesh.cli.console import PipeSafeOutput

    if sys.stdout is not None:  # It is None if the shell closed it.
        sys.stdout = PipeSafeOutput(sys.stdout)
    code = run(arguments)
    if sys.stdout is not None:
        sys.stdout.flush()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Every error becomes one line on stderr.

    Args:
        arguments: The command line; by default the process's own.

    Returns:
        The exit code.
    """
    import typer

    from dpmesh.cli import console
    from dpmesh.cli.app import app
    from dpmesh.errors import ConfigError, DpmeshError, LedgerError

    console.prepare()
    # The base class of usage errors in the click that typer uses, its own or the installed one.
    usage_error: type[Exception] = typer.BadParameter.__mro__[2]
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="dpmesh", standalone_mode=False)
    except usage_error as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        console.fail(error.format_message() + hint)  # type: ignore[attr-defined]
        return console.UNUSABLE
    except (console.InputError, ConfigError, LedgerError) as error:
        console.fail(str(error))
        return console.UNUSABLE
    except DpmeshError as error:
        console.fail(str(error))
        return console.FOUND
    except (KeyboardInterrupt, typer.Abort):
        code = console.INTERRUPTED
    except RecursionError:
        console.fail("the input is nested too deeply")
        return console.UNUSABLE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        console.fail(f"{where}{error.strerror or error}")
        return console.UNUSABLE
    except Exception as error:
        console.fail(f"a mistake of dpmesh, please report it: {_summary(error)}")
        return console.UNUSABLE
    if code == console.INTERRUPTED:
        console.fail("interrupted")
    return code if isinstance(code, int) else console.OK


def _summary(error: Exception) -> str:
    """An unexpected exception on one line: its type, its text, and where it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}: {error}{where}"
