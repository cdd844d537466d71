"""The command line as a whole: help, version, mistakes, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dpmesh import __version__, cli
from dpmesh.cli import app
from dpmesh.cli.commands import protos
from dpmesh.errors import AnnotationError, BudgetExhaustedError

COMMANDS = [
    ["check"],
    ["plan"],
    ["protos"],
    ["budget"],
    ["budget", "list"],
    ["budget", "show"],
    ["budget", "grant"],
    ["budget", "export"],
    ["ledger"],
    ["demo"],
    [],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(dpmesh, command: list[str]) -> None:
    ran = dpmesh(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "Example: dpmesh" in ran.out or "Example: protoc" in ran.out


def test_help_lists_all_commands(dpmesh) -> None:
    out = dpmesh("--help").out
    assert all(f" {name} " in out for name in app.COMMANDS)


def test_version(dpmesh) -> None:
    assert dpmesh("--version") == (0, f"dpmesh {__version__}\n", "")


def test_protos(dpmesh) -> None:
    ran = dpmesh("protos")
    assert ran.code == 0
    assert (protos.include.dpmesh_protos() / "dpmesh/v1/privacy.proto").is_file()
    assert ran.out == f"{protos.include.dpmesh_protos()}\n"


@pytest.mark.parametrize("arguments", [[], ["budget"]])
def test_without_a_command_there_is_help_and_exit_2(dpmesh, arguments: list[str]) -> None:
    ran = dpmesh(*arguments)
    assert ran.code == 2
    assert "Commands" in ran.out


@pytest.mark.parametrize("arguments", [["--nothing"], ["chekc"], ["protos", "extra"], ["plan", "--nothing"]])
def test_mistakes_are_one_line_and_exit_2(dpmesh, arguments: list[str]) -> None:
    ran = dpmesh(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("dpmesh: ")
    assert len(ran.err.splitlines()) == 1
    assert "--help" in ran.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (AnnotationError("bounds", "a.B", "are odd"), 1, "a.B: are odd [bounds]"),
        (BudgetExhaustedError("daily", None), 1, "daily"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            RuntimeError("first\nsecond"),
            2,
            "a mistake of dpmesh, please report it: RuntimeError: first second",
        ),
    ],
)
def test_no_exception_becomes_a_traceback(
    dpmesh, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(protos, "protos", refuse)
    ran = dpmesh("protos")
    assert ran.code == code
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1


def test_main_ends_the_process_with_the_exit_code() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["nothing"])
    assert caught.value.code == 2


def test_check_imports_neither_grpc_nor_the_demo(write) -> None:
    file = write("a.proto", 'syntax = "proto3";\nmessage A {}\n')
    heavy = "{'grpc', 'grpc_tools', 'opentelemetry.sdk', 'scipy', 'dpmesh.cli.commands.demo', 'dpmesh.cli.commands.plan'}"
    code = f"import sys; from dpmesh import cli; cli.run(['check', {str(file)!r}]); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


GOOD = """syntax = "proto3";
import "dpmesh/v1/privacy.proto";
message A { string a = 1 [(dpmesh.v1.field).suppress = {}]; }
"""


@pytest.mark.parametrize("text", [GOOD, GOOD.replace(".suppress = {}", " = {}")], ids=["good", "bad"])
@pytest.mark.parametrize(
    "arguments", [[], ["--json"], ["--format", "github"]], ids=["text", "json", "github"]
)
def test_a_reader_that_leaves_does_not_change_the_exit_code(write, text: str, arguments: list[str]) -> None:
    command = ["check", write("a.proto", text), *arguments]
    assert _without_a_reader(*command) == (0 if text == GOOD else 1, "")


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["protos"], ["--version"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    assert _without_a_reader(*arguments) == (0, "")


def _without_a_reader(*arguments: object) -> tuple[int, str]:
    """Runs a command whose output goes into a pipe that nobody reads any more: its exit code, and stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", "from dpmesh.cli import main; main()", *map(str, arguments)],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    return done.returncode, done.stderr
