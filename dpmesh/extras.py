"""How to install the optional packages that an error names."""

from __future__ import annotations


def install(extra: str) -> str:
    """A command that installs an extra. dpmesh is in no package registry: it comes from a checkout or a git URL.

    Args:
        extra: As pyproject.toml names it, such as "postgres".
    """
    return (
        f"pip install '.[{extra}]' in a checkout of dpmesh, or pip install 'dpmesh[{extra}] @ git+URL' with the "
        "repository's URL"
    )
