"""Rows of exports."""

from __future__ import annotations

from decimal import Decimal

from dpmesh.accounting import AMOUNT
from dpmesh.report import export_rows

MUCH = 8_999_999_999 * AMOUNT + 123_456_789


def test_decimals() -> None:
    values = (0, 1, AMOUNT, MUCH, -1, -AMOUNT, -3 * AMOUNT // 2)
    assert all(Decimal(export_rows.decimal(value)) * AMOUNT == value for value in values)
