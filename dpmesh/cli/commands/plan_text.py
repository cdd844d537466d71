"""The text of `dpmesh plan`: tables of fields, and sentences about budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.cli.console import say, stdout, table
from dpmesh.ledger import Budget
from dpmesh.policy import Model
from dpmesh.policy.kinds.words import duration, number
from dpmesh.report.balances import loss_over
from dpmesh.report.plan import FieldReport, MemoizedReport, MessageReport, Payment
from dpmesh.report.rpcs import FieldChange, MessageChange, PlanReport
from dpmesh.report.wording import count

if TYPE_CHECKING:
    from rich.table import Table

# How many windows the example of what windows add up to has.
_WINDOWS = 30


def write_code(sources: Mapping[str, str]) -> None:
    """Writes generated code by the name of its message type to stdout, as one file that Python can read."""
    for name, source in sources.items():
        say(f"# {name}", "", *source.rstrip().splitlines(), "")


def write(plan: PlanReport) -> None:
    """Writes the report to stdout."""
    console = stdout()
    if plan.changes is not None:
        _changes(console, plan.changes)
        return
    written: dict[str, MessageReport] = {}
    for rpc in plan.rpcs:
        boundary = ": a trust boundary, over which no trace goes on" * rpc.trust_boundary
        console.print(Text.assemble((rpc.method, "bold"), boundary), soft_wrap=True)
        if rpc.send_slot is not None:
            a_day = f"{86_400 / rpc.send_slot:,.0f} messages a day, covers included"
            console.print(f"  requests leave in slots, one each {duration(rpc.send_slot)}: {a_day}")
        for direction, streams in (("request", rpc.client_streaming), ("response", rpc.server_streaming)):
            report = plan.of(rpc, direction)
            role = direction + (" stream" if streams else "")
            rate = plan.rate
            if direction == "request" and rpc.send_slot is not None:
                rate = f"one each {duration(rpc.send_slot)}"
            _message(console, plan, role, report, written.get(report.message), rate)
            written.setdefault(report.message, report)
        console.print()
    if not plan.rpcs:
        for report in plan.reports.values():
            _message(console, plan, "message", report, None, plan.rate)
            console.print()
        if not plan.reports:
            console.print("No service and no protected message type in these files.")
            return
    console.print(
        "Error: a number's worst-case standard deviation, per element; how often a category is true."
    )
    paying = {payment.budget for report in plan.reports.values() for payment in report.payments}
    for budget in plan.budgets:
        chooses = budget.is_quota or not budget.match.everything
        does = "counts" if budget.is_quota else "pays for"
        unused = f" It {does} nothing here." if chooses and budget.name not in paying else ""
        console.print(_lifetime(budget) + _choice(budget) + unused, soft_wrap=True)
    if any(not budget.match.everything for budget in plan.budgets if not budget.is_quota):
        console.print(
            "Budgets that choose what they pay for add up: one unit's whole loss is at most the sum of what they admit."
        )
    if plan.config is None:
        console.print("These budgets are the embedded defaults; --config shows yours.")


def _message(
    console: Console,
    plan: PlanReport,
    role: str,
    report: MessageReport,
    before: MessageReport | None,
    rate: str,
) -> None:
    """Writes a report, or only what is new since the one on the same type that was written before."""
    head = Text.assemble(f"  {role} ", (report.message, "bold"))
    if not report.protected:
        text = ": nothing to protect, but for what its Anys pack" if report.fields else ": nothing to protect"
        console.print(head.append(text), soft_wrap=True)
        if report.fields and report != before:
            console.print(_table(report.fields))
        return
    if report == before:
        console.print(head.append(": as above"), soft_wrap=True)
        return
    if before is not None:
        head.append(": fields as above")
    elif report.refused is None or report.epsilon is not None:
        several = any("[]" in payment.unit or "{}" in payment.unit for payment in report.payments)
        head.append(f": at most {_loss(report)} per message" + ", one of each unit in it" * several)
    console.print(head, soft_wrap=True)
    if report.fields and before is None:
        console.print(_table(report.fields))
    if report.refused:
        console.print(Text.assemble("    ", ("refused", "red"), f": {report.refused}"), soft_wrap=True)
    if report.size is not None and before is None:
        console.print(f"    size on the wire: {_size(report)}", soft_wrap=True)
    if report.digest and before is None:
        console.print(f"    digest of the rules: {report.digest}", soft_wrap=True)
    budgets = {budget.name: budget for budget in plan.budgets}
    for payment in report.payments:
        console.print("    " + _payment(payment, budgets[payment.budget], rate), soft_wrap=True)
    if report.memoized is not None:
        console.print("    " + _memoized(report.memoized), soft_wrap=True)
    if len(report.payments) > 1:
        _first(console, rate, report)


def _size(report: MessageReport) -> str:
    """How long a message is; with pad_to, also which messages are refused."""
    size = report.size
    assert size is not None
    why = f"because of {size.unbounded}"
    if report.pad_to:
        longer = "" if size.largest is not None else f"; longer ones, which are possible {why}, are refused"
        return _sizes(report.pad_to) + longer
    if size.largest is None:
        return f"{size.smallest} bytes or more, unbounded {why}"
    return (
        f"{size.smallest} to {size.largest} bytes"
        if size.smallest < size.largest
        else f"{size.largest} bytes"
    )


def _sizes(pad_to: Sequence[int]) -> str:
    if not pad_to:
        return "as long as it is"
    sizes = ", ".join(map(str, pad_to))
    return f"always {sizes} bytes" if len(pad_to) == 1 else f"one of {sizes} bytes"


def _memoized(memoized: MemoizedReport) -> str:
    shares = ", ".join(f"{100 * share:.3g} % of {name}" for name, share in memoized.shares.items())
    return (
        f"memoized: each unit's first message in {duration(memoized.seconds)} costs ε {number(memoized.epsilon)} more, "
        f"for the answers to all values ({shares}); later ones cost nothing for these fields"
    )


def _first(console: Console, rate: str, report: MessageReport) -> None:
    """Writes which budget is spent first for every consumer, and which quota is spent before it for some."""
    usual, some = report.tightest, report.tightest_for_some
    head = f"    at {rate} the first to be spent"
    if usual is not None:
        more = "" if some is None else f"; for consumers it fits: {_after(some)}"
        console.print(f"{head} is {_after(usual)}{more}", soft_wrap=True)
    elif some is not None:
        console.print(f"{head}, for consumers it fits, is {_after(some)}", soft_wrap=True)


def _after(payment: Payment) -> str:
    if not payment.messages:
        return f"{payment.budget}, too little for one message"
    return f"{payment.budget}, after {duration(payment.seconds or 0.0)}"


def _new_table(*columns: str) -> Table:
    """A plain table. A narrow terminal breaks columns of words before those of names and numbers."""
    words = ("kind", "mechanism", "what leaves", "decided by")
    return table(*columns, no_wrap=[name for name in columns if name not in words])


def _table(fields: Sequence[FieldReport]) -> Table:
    rows = _new_table("    field", "kind", "mechanism", "ε", "ρ", "error", "what leaves", "decided by")
    for entry in fields:
        rows.add_row(
            "    " + entry.path + (f" ×{entry.elements}" if entry.elements > 1 else ""),
            entry.kind + (" (central)" if entry.model == Model.CENTRAL else ""),
            entry.mechanism or "",
            _epsilon(entry),
            "" if entry.rho is None else number(entry.rho),
            _error(entry),
            entry.output,
            entry.origin,
        )
    return rows


def _epsilon(entry: FieldReport) -> str:
    if entry.epsilon is None:
        return ""
    return number(entry.epsilon) + (f" (δ {entry.delta:g})" if entry.delta else "")


def _error(entry: FieldReport) -> str:
    if entry.error is not None:
        return f"sd {number(entry.error)}"
    return "" if entry.truth is None else f"true {entry.truth:.1%}"


def _payment(payment: Payment, budget: Budget, rate: str) -> str:
    """One budget's part: what one message takes of it, and how long a window's budget lasts."""
    who = payment.unit or "everyone"
    if "[]" in payment.unit or "{}" in payment.unit:
        who = f"each {who}"
    window = "lifetime" if budget.window is None else f"window of {duration(budget.window)}"
    covers = f"{count(payment.messages, 'message')} per {window}"
    if not payment.messages:
        lasts = "too little for one message"
    elif payment.seconds is not None:
        lasts = f"at {rate} it is spent after {duration(payment.seconds)}"
    else:
        lasts = f"at {rate} it is never spent"
    pays = "pays"
    if payment.under:
        to = " or ".join(consumer or "nobody known" for consumer in payment.consumers)
        pays = f"limits each consumer {to}".rstrip()
    return f"{budget.name} {pays}, account of {who}: {100 * payment.share:.3g} % a message, {covers}; {lasts}"


def _choice(budget: Budget) -> str:
    """The methods, messages, directions and labels that a budget or quota is limited to."""
    lists = {name: globs for name, globs in asdict(budget.match).items() if globs}
    if not lists:
        return ""
    chosen = "; ".join(f"{name} {', '.join(globs)}" for name, globs in lists.items())
    return f" It {'counts only' if budget.is_quota else 'pays only for'} {chosen}."


def _lifetime(budget: Budget) -> str:
    loss = f"ε {number(budget.epsilon)}"
    if budget.accounting is Accounting.ZCDP:
        loss += f" at δ {budget.delta:g} (ρ {number(budget.cap / AMOUNT)})"
    if budget.threshold_delta:
        loss += f", and δ {budget.threshold_delta:g} for histograms without keys,"
    owner = "each unit" if budget.owner == "unit" else "everyone together"
    if budget.is_quota:
        head = f"Quota {budget.name} under {budget.under}: {loss} for {owner}, to each consumer"
        return head + (
            " in all." if budget.window is None else f" in each window of {duration(budget.window)}."
        )
    head = f"Budget {budget.name}: {loss} for {owner}"
    if budget.window is None:
        return head + " in all."
    sum_of_windows = loss_over(budget, _WINDOWS)
    total = f"ε {number(sum_of_windows.epsilon)}"
    if budget.accounting is Accounting.ZCDP:
        total = f"ρ {number(sum_of_windows.value)}, {total} at δ {budget.delta + _WINDOWS * budget.threshold_delta:g}"
    return (
        f"{head} in each window of {duration(budget.window)}. T windows cost at most T times that "
        f"({_WINDOWS}: {total}), and as long a time across an edge up to twice."
    )


def _changes(console: Console, changes: Sequence[MessageChange]) -> None:
    if not changes:
        console.print("Nothing changes: the same fields leave at the same loss and error.")
    for change in changes:
        console.print(Text.assemble((change.message, "bold"), f": {_loss_change(change)}"), soft_wrap=True)
        old, new = (() if side is None else side.pad_to for side in (change.old, change.new))
        if old != new:
            console.print(f"  size: {_sizes(old)} -> {_sizes(new)}", soft_wrap=True)
        if change.fields:
            console.print(_change_table(change.fields))
        console.print()


def _loss_change(change: MessageChange) -> str:
    before, after = (_loss_in_words(report) for report in (change.old, change.new))
    return f"{before}, unchanged in all" if before == after else f"{before} -> {after}"


def _loss_in_words(report: MessageReport | None) -> str:
    if report is None:
        return "not there"
    if report.refused:
        return f"refused ({report.refused})"
    if not report.protected:
        return "unprotected"
    return _loss(report)


def _loss(report: MessageReport) -> str:
    at = f" at δ {report.delta:g}" if report.delta else ""
    return f"ε {number(report.epsilon)}{at}, ρ {number(report.rho)}"


def _change_table(fields: Sequence[FieldChange]) -> Table:
    rows = _new_table("  field", "mechanism", "ε", "ρ", "error", "what leaves", "decided by")
    for change in fields:
        cells = [_cells(side) for side in (change.old, change.new)]
        pairs = [
            before if before == after else f"{before} -> {after}"
            for before, after in zip(*cells, strict=True)
        ]
        rows.add_row("  " + change.path, *pairs)
    return rows


def _cells(entry: FieldReport | None) -> tuple[str, ...]:
    if entry is None:
        return ("not there", "-", "-", "-", "nothing", "-")
    return (
        entry.mechanism or entry.kind,
        _epsilon(entry) or "-",
        "-" if entry.rho is None else number(entry.rho),
        _error(entry) or "-",
        entry.output,
        entry.origin,
    )
