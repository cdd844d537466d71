"""Prints what two policies differ in, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmesh.cli.console import stdout

if TYPE_CHECKING:
    from dpmesh.rollout.policy_order import Comparison

_COLOURS = {"looser": "red", "other": "yellow", "tighter": "green", "equal": "green"}


def write(found: Comparison) -> None:
    """Prints each difference, and what all of them do together."""
    from rich.text import Text

    console = stdout()
    for each in found.differences:
        order = Text(f"{each.order:<8}", _COLOURS[each.order])
        console.print(Text.assemble(order, (f"{each.element}: ", "bold"), each.text), soft_wrap=True)
    count = len(found.differences)
    summary = f"{count} difference{'' if count == 1 else 's'}: the new policy is {found.order}"
    console.print(Text(summary, _COLOURS[found.order]), soft_wrap=True)
