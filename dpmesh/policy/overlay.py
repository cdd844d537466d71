"""Policy files: the message dpmesh.v1.Policy in YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format

from dpmesh.errors import ConfigError
from dpmesh.v1 import policy_pb2


def load(path: str | Path) -> policy_pb2.Policy:
    """Reads a policy file.

    Args:
        path: A .yaml, .yml or .json file.

    Returns:
        The overlays.

    Raises:
        ConfigError: The file is missing, is not YAML or JSON, or has a key or value that the schema does not.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy file {path}: can't be read ({type(error).__name__})") from None
    return parse(_document(text, path), str(path))


def parse(document: Any, source: str) -> policy_pb2.Policy:
    """Turns a parsed document into a Policy.

    Args:
        document: Nested dicts and lists in protobuf's JSON form.
        source: What to call it in errors.

    Raises:
        ConfigError: It does not fit the schema.
    """
    if document is None:
        return policy_pb2.Policy()
    if not isinstance(document, dict):
        raise ConfigError(f"policy file {source}: the top level must be a mapping with keys such as 'fields'")
    try:
        return json_format.ParseDict(document, policy_pb2.Policy())
    except (json_format.ParseError, OverflowError) as error:
        raise ConfigError(f"policy file {source}: {error}") from None


def _document(text: str, path: Path) -> Any:
    import yaml

    from dpmesh.policy.bounded_yaml import BoundedLoader, BoundsError

    class Unique(BoundedLoader):
        """A key written twice would silently drop the first protection."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = {str(key) for key in keys if keys.count(key) > 1}
            if twice:
                raise ConfigError(f"policy file {path}: written twice: {', '.join(sorted(twice))}")
            return super().construct_mapping(node, deep=deep)

    # JSON is YAML, so one parser reads both.
    try:
        return yaml.load(text, Loader=Unique)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"policy file {path}: not YAML or JSON{where}") from None
    except BoundsError as error:
        raise ConfigError(f"policy file {path}: {error}") from None
    except (ValueError, KeyError, AttributeError):
        # PyYAML's own conversions: a date that does not exist, a number of thousands of digits, "!!bool perhaps".
        raise ConfigError(f"policy file {path}: has a value that can't be read") from None
