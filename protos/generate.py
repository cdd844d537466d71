"""Generates the committed protobuf code, or checks that it is what the .proto files give.

    python protos/generate.py [--check]

The compiler is pinned and kept in a folder of its own: generated code asks for a protobuf runtime at least as new as
its compiler, so the oldest compiler that will do leaves users the widest choice.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from google.type import money_pb2

COMPILER = "1.76.0"
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / f"grpcio-tools-{COMPILER}"


def sources() -> list[tuple[Path, Path, bool]]:
    """(.proto file, the folder that its imports and its output start from, has services) of all of them."""
    found = []
    for folder in (ROOT / "protos", ROOT / "examples", ROOT / "tests", ROOT / "benchmarks"):
        for proto in sorted(folder.rglob("*.proto")):
            services = "\nservice " in proto.read_text(encoding="utf-8")
            # The schema's package path is its module path; other protos lie beside their code.
            if folder.name == "protos":
                found.append((proto, folder, services))
            elif (proto.parent / f"{proto.stem}_pb2.py").exists():
                found.append((proto, package_root(proto), services))
    return found


def package_root(proto: Path) -> Path:
    """The folder that Python imports the code beside a .proto from: the first above it that is no package."""
    folder = proto.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def compiler() -> dict[str, str]:
    """The environment in which `python -m grpc_tools.protoc` is the pinned compiler."""
    if not CACHE.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts"]
        subprocess.run([*pip, "--target", str(CACHE), f"grpcio-tools=={COMPILER}"], check=True)
    return {**os.environ, "PYTHONPATH": str(CACHE)}


def generate(proto: Path, base: Path, services: bool, out: Path, environment: dict[str, str]) -> list[Path]:
    """Compiles one file into `out`; returns what it wrote, relative to it."""
    folders = (base, ROOT / "protos", Path(money_pb2.__file__).parents[2])
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{folder}" for folder in folders)]
    command += [f"--python_out={out}", f"--pyi_out={out}"]
    if services:
        command.append(f"--grpc_python_out={out}")
    subprocess.run([*command, str(proto)], check=True, env=environment)
    stem = (out / proto.relative_to(base)).with_suffix("")
    endings = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py") if services else ("_pb2.py", "_pb2.pyi")
    return [Path(f"{stem}{ending}").relative_to(out) for ending in endings]


def main() -> int:
    """Writes the code beside the sources, or compares; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if anything would change")
    check = parser.parse_args().check
    environment = compiler()
    drifted = []
    with tempfile.TemporaryDirectory() as scratch:
        for proto, base, services in sources():
            home = ROOT if base == ROOT / "protos" else base
            out = Path(scratch) if check else home
            for made in generate(proto, base, services, out, environment):
                committed = home / made
                if check and not (committed.exists() and filecmp.cmp(out / made, committed, shallow=False)):
                    drifted.append(str(committed.relative_to(ROOT)))
    for path in drifted:
        print(f"differs from its .proto (run `make protos`): {path}", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
