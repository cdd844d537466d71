"""`make mutants` changes the files that pyproject lists; a file that was moved would silently be left out."""

import re
import tomllib
from pathlib import Path

from tests import support

ROOT = Path(support.__file__).parents[2]
MUTMUT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]


def test_every_file_that_is_to_be_mutated_exists():
    assert [glob for glob in MUTMUT["only_mutate"] if not list(ROOT.glob(glob))] == []


def test_every_pattern_of_lines_that_are_left_out_finds_some():
    files = [path for glob in MUTMUT["only_mutate"] for path in ROOT.glob(glob)]
    lines = [line for path in files for line in path.read_text().splitlines()]
    patterns = MUTMUT["do_not_mutate_patterns"]
    assert [text for text in patterns if not any(re.search(text, line) for line in lines)] == []
