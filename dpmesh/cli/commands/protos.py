"""`dpmesh protos`: where privacy.proto is, for protoc and buf."""

from __future__ import annotations

from dpmesh.cli.console import InputError
from dpmesh.cli.descriptors import include

HELP = "Print the include path of dpmesh's .proto files."
EPILOG = "Example: protoc -I. -I$(dpmesh protos) --python_out=. acme/fleet.proto"


def protos() -> None:
    """Prints one path."""
    path = include.dpmesh_protos()
    if not (path / "dpmesh/v1/privacy.proto").is_file():
        raise InputError(f"{path}: the .proto files are not where they were installed; install dpmesh again")
    # Shells need the exact path.
    print(path)
