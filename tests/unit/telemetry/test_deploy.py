"""deploy/jaeger and deploy/compose: one version of Jaeger, and clear words where it can't be had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SCRIPT = DEPLOY / "jaeger" / "get.sh"
V1_HELP = "echo '  --collector.otlp.grpc.host-port string'"
V2_HELP = "echo '  --config strings'"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A directory with the script, and a bin/ with the few programs that looking for a binary takes."""
    (tmp_path / "deploy" / "jaeger").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "deploy" / "jaeger")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


def program(path: Path, body: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def get(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "deploy" / "jaeger" / "get.sh")],
        env={"PATH": str(checkout / "bin")} | environment,
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def version() -> str:
    return re.search(r"^readonly VERSION=v(\S+)", SCRIPT.read_text(), re.M)[1]


def test_without_go_it_says_so(checkout):
    done = get(checkout)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no Go to build one" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["jaeger", "jaeger-all-in-one"])
def test_a_binary_on_the_path_is_found(checkout, name):
    path = program(checkout / "bin" / name, V1_HELP)
    assert get(checkout).stdout == f"{path}\n"


def test_version_2_is_not_taken(checkout):
    program(checkout / "bin" / "jaeger", V2_HELP)
    assert get(checkout).returncode == 1


def test_what_was_built_goes_before_the_path(checkout):
    program(checkout / "bin" / "jaeger", V1_HELP)
    built = program(checkout / ".cache" / "jaeger" / f"jaeger-all-in-one-v{version()}", V1_HELP)
    assert get(checkout).stdout == f"{built}\n"


def test_the_named_binary_goes_before_all(checkout):
    program(checkout / "bin" / "jaeger", V1_HELP)
    named = program(checkout / "mine", V1_HELP)
    assert get(checkout, JAEGER_BINARY=named).stdout == f"{named}\n"
    done = get(checkout, JAEGER_BINARY=program(checkout / "other", V2_HELP))
    assert done.returncode == 1
    assert "is not a Jaeger v1" in done.stderr


def test_the_compose_file():
    content = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    jaeger, fleet = content["services"]["jaeger"], content["services"]["fleet"]
    assert jaeger["image"] == f"jaegertracing/all-in-one:{version()}"
    assert all(port.startswith("127.0.0.1:") for port in jaeger["ports"])
    lines = fleet["build"]["dockerfile_inline"].splitlines()
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim", lines[0])
    context = (DEPLOY / "compose" / fleet["build"]["context"]).resolve()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert len(copied) == 7
    assert all((context / name).exists() for name in copied)
    assert fleet["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"
