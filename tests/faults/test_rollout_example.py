"""The example of a roll-out: what it prints of a small fleet."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rollout" / "rollout.py"


def test_officers_move_a_fleet_and_thieves_do_not():
    command = [sys.executable, str(EXAMPLE), "--devices", "12"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    for text in (
        "the fleet: epoch 1: 12",
        "100% of the fleet: epoch 2: 12",
        "1 of the 2 officers that it needs signed it",
        "the fleet: epoch 4: 12",
    ):
        assert text in said
    assert re.findall(r"accepted by (\d+) of 12 devices", said) == ["0"] * 8
    rows = re.findall(r"(HEALTH_\w+) +([\d.]+) +(-?[\d.]+) \[ *(-?[\d.]+), *(-?[\d.]+)\]", said)
    assert len(rows) == 4
    for name, truth, value, low, high in rows:
        # Six standard deviations: a false alarm once in 100 million runs.
        assert abs(float(value) - float(truth)) < 1.5 * (float(high) - float(low)), name
