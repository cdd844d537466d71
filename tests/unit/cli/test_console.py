"""What is printed: no name steers a terminal or gives a CI runner a command, and every encoding can print it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from dpmesh import cli
from dpmesh.accounting import Accounting
from dpmesh.cli import console
from dpmesh.cli.commands import protos
from dpmesh.ledger import Budget, Ledger, open_store
from tests.unit.cli.commands.test_check import BAD, GOOD

URL = "sqlite:///ledger.db"
# A terminal's escape (C0 and C1), a bell, a line break that begins a command, marks that reorder, and lone surrogates.
HOSTILE = "\x1b[2J\x9b31m\x07\r\n::error::mine\u2028\u202egnp.exe\u2066\u200f\udcff##[add-mask]x"
CONTROLS = "\x1b\x9b\x07\r\u2028\u202e\u2066\u200f\udcff"


def is_harmless(out: str) -> bool:
    return (
        not any(letter in out for letter in CONTROLS)
        and not any(line.lstrip().startswith("::") for line in out.splitlines())
        and "##[" not in out
    )


def test_printable_text_has_one_line_and_as_many_characters() -> None:
    shown = console.printable(HOSTILE)
    assert len(shown) == len(HOSTILE)
    assert shown.isprintable()
    assert "\N{REPLACEMENT CHARACTER}" in shown
    for ordinary in ("ε 4 to δ 1e-6, Zürich 🛫", "[::1]:50051", "a::b", "# [x] ##"):
        assert console.printable(ordinary) == ordinary
    assert not console.printable("  ::error::x").lstrip().startswith("::")


def test_every_way_to_print_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    out = console.stdout()
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    out.print(HOSTILE)
    out.print(Text.assemble((HOSTILE, "bold"), "::error::"), soft_wrap=True)
    out.print(table)
    console.say(HOSTILE, "::error::")
    console.fail(HOSTILE)
    console.note("::error::")
    console.print_json({HOSTILE: HOSTILE})
    console.print_json_line(json.dumps({"a": HOSTILE.replace("\udcff", "")}, ensure_ascii=False))
    ran = capsys.readouterr()
    assert is_harmless(ran.out)
    assert is_harmless(ran.err)
    assert "[bold]" not in ran.out


def test_json_says_what_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({HOSTILE: 1})
    assert json.loads(capsys.readouterr().out) == {HOSTILE: 1}
    valid = {"é ε 🛫": HOSTILE.replace("\udcff", "")}
    console.print_json_line(json.dumps(valid, ensure_ascii=False))
    out = capsys.readouterr().out
    assert (json.loads(out), out.isascii()) == (valid, True)


def test_a_github_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_github("error", [("file", f"{HOSTILE},a:b%")], f"{HOSTILE}\nFix: 100 %")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("::error file=")
    assert not any(letter in out for letter in CONTROLS)
    properties = out.partition(" ")[2].partition("::")[0]
    assert not {":", ","} & set(properties)
    assert out.endswith("%0AFix: 100 %25\n")


def test_only_the_console_prints() -> None:
    """Everything else goes through it, but for the path that `dpmesh protos` gives to shells."""
    printing = []
    for path in Path(cli.__file__).parent.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id == "print" for call in calls):
            printing.append(path.name)
    assert sorted(printing) == ["console.py", "protos.py"]


@pytest.mark.parametrize("style", ["text", "json", "github"])
@pytest.mark.parametrize("name", ["::error::\x1b[31m.proto", "a\n::error::b.proto", "\u202eotorp.proto"])
def test_file_names(dpmesh, write, name: str, style: str) -> None:
    ran = dpmesh("check", write(f"{name}", BAD), "--format", style)
    assert ran.code == 1
    if style == "github":
        assert len([line for line in ran.out.splitlines() if line.startswith("::")]) == 1
        assert not any(letter in ran.out for letter in CONTROLS)
    else:
        assert is_harmless(ran.out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", HOSTILE[:-20]],
        ["check", "x.proto", "--format", HOSTILE],
        ["check", "--descriptor-set", HOSTILE],
        ["check", "--reflect", f"localhost:1{HOSTILE}"],
        ["plan", "x.proto", "--rate", HOSTILE],
        ["budget", "list", "--ledger", HOSTILE],
        ["budget", "list", "--config", HOSTILE],
        ["ledger", "verify", "--checkpoint", HOSTILE, "--public-key", HOSTILE, "--ledger", URL],
        ["identity", "status", HOSTILE],
        [HOSTILE],
        [f"--{HOSTILE}"],
    ],
)
def test_errors_that_quote_arguments(dpmesh, arguments: list[str]) -> None:
    ran = dpmesh(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("dpmesh: ")
    assert "mistake of dpmesh" not in ran.err
    assert is_harmless(ran.err)


# Encodings, terminals and files that can't be written.


@pytest.fixture
async def ledger(workplace: Path) -> None:
    """One account, in a budget whose name not every encoding has."""
    ledger = Ledger(open_store(URL), [Budget("täglich-ε", "unit", 8.0, 0.0, Accounting.PURE, None)])
    await ledger.open()
    await ledger.charge([(0, b"unit", 10**9)])
    await ledger.close()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The installed script, with its output in a pipe."""
    script = shutil.which("dpmesh", path=sysconfig.get_path("scripts"))
    assert script is not None
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DPMESH_", "PYTHONIO"))}
    return subprocess.run([script, *arguments], env={**kept, **environment}, capture_output=True, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_a_letter_shows_another(ledger: None, encoding: str) -> None:
    ran = run("budget", "list", "--ledger", URL, PYTHONIOENCODING=encoding)
    assert (ran.returncode, ran.stderr) == (0, b"")
    out = ran.stdout.decode(encoding)
    assert "? 8" in out
    assert "glich-?" in out


def test_data_for_programs_do_not_depend_on_the_encoding(ledger: None) -> None:
    ran = run("budget", "export", "--format", "csv", "--ledger", URL, PYTHONIOENCODING="latin-1")
    assert "täglich-ε," in ran.stdout.decode()
    for arguments in (("budget", "export", "--format", "jsonl"), ("ledger", "log", "--json")):
        ran = run(*arguments, "--ledger", URL, PYTHONIOENCODING="ascii")
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert "täglich-ε" in str([json.loads(line) for line in ran.stdout.splitlines()])


def test_a_terminal_without_colours_or_width(ledger: None) -> None:
    for environment in ({"TERM": "dumb", "COLUMNS": "20"}, {"NO_COLOR": "1", "LC_ALL": "C"}):
        ran = run("budget", "list", "--ledger", URL, **environment)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert b"\x1b" not in ran.stdout


def test_closed_streams_are_no_mistake(ledger: None) -> None:
    code = (
        "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    cli_code = f"from dpmesh import cli; cli.main(['budget', 'list', '--ledger', {URL!r}])"
    done = subprocess.run([sys.executable, "-c", code, "-c", cli_code], check=False)
    assert done.returncode == 0


def test_a_terminal_gets_only_printable_rows(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console.data_stdout().write(f"{HOSTILE.replace(chr(10), '')}\nnext\n")
    out = capsys.readouterr().out
    assert is_harmless(out)
    assert out.endswith("\nnext\n")


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "somewhere"), PermissionError(13, "Permission denied", "x")],
)
def test_files_that_can_not_be_used_are_the_users_to_mend(dpmesh, monkeypatch, error: OSError) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(protos, "protos", fail)
    assert dpmesh("protos") == (2, "", f"dpmesh: {error.filename}: {error.strerror}\n")


LONG = "x" * 300  # longer than a file's name may be, whoever asks


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--keep", LONG],
        ["demo", "--keep", "file/ledgers"],
        ["demo", "--keep", "/proc/ledgers"],
        ["budget", "export", "--output", LONG, "--ledger", URL],
        ["ledger", "checkpoint", "--key", "k", "--new-key", "--output", LONG, "--ledger", URL],
        ["ledger", "checkpoint", "--key", LONG, "--new-key", "--output", "o", "--ledger", URL],
        ["identity", "init", LONG, "--trust-domain", "a.example"],
        ["identity", "issue", "ca", "--out", LONG],
        ["identity", "issue", "ca", "--out", "file/out"],
        ["check", LONG],
        ["check", "--descriptor-set", LONG],
        ["check", "good.proto", "--policy", LONG],
        ["plan", "good.proto", "--config", LONG],
        ["plan", "good.proto", "--against", LONG],
    ],
)
def test_paths_that_can_not_be_used(dpmesh, write, ledger: None, arguments: list[str]) -> None:
    write("file", "")
    write("good.proto", GOOD)
    assert dpmesh("identity", "init", "ca", "--trust-domain", "a.example").code == 0
    ran = dpmesh(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert "mistake of dpmesh" not in ran.err


def test_a_dash_is_stdout(dpmesh, ledger: None) -> None:
    plain = dpmesh("budget", "export", "--ledger", URL)
    assert dpmesh("budget", "export", "--output", "-", "--ledger", URL) == plain
    ran = dpmesh("budget", "export", "--output", "-", "--format", "parquet", "--ledger", URL)
    assert (ran.code, "--output FILE" in ran.err) == (2, True)
    ran = dpmesh("ledger", "checkpoint", "--key", "k", "--new-key", "--output", "-", "--ledger", URL)
    assert ran.code == 0
    Path("point.json").write_text(ran.out)
    known = ("--checkpoint", "point.json", "--public-key", "k.pub")
    assert dpmesh("ledger", "verify", *known, "--ledger", URL).code == 0
    assert "-" not in os.listdir()


def test_json_alone_is_on_stdout_when_nothing_was_done(dpmesh, ledger: None) -> None:
    ran = dpmesh("ledger", "accept", "--reason", "r", "--by", "b", "--json", "--ledger", URL)
    assert ran.code == 2
    assert json.loads(ran.out) == {"accepted": False, "lifetime": ["täglich-ε"], "ahead": []}
    assert "--yes" in ran.err
