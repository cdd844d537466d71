"""A thousand RPCs at once, from sixteen processes, against a budget for a hundred messages in one SQLite file."""

from __future__ import annotations

import os
import time
from collections import Counter

import grpc

from dpmesh.accounting import AMOUNT
from dpmesh.ledger import inspect
from tests.faults.holders import MARGIN, check
from tests.faults.test_postgres_rpc import (
    DEADLINE,
    EPSILON,
    GOOD,
    MESSAGES,
    PROCESSES,
    REFUSED,
    RPCS,
    Gate,
    hear,
    many,
    serve,
    the_rest,
)
from tests.support import children


def test_a_thousand_rpcs_at_once_against_a_budget_for_a_hundred(tmp_path):
    """Sixteen processes with one file make a thousand RPCs at once for one unit.

    The handler receives at most what the budget covers. All others are refused before their deadline, because the
    budget is used up or the rest of it is in other processes' slices. When these are returned, one more process gets
    exactly the rest.
    """
    url = f"sqlite:///{tmp_path}/ledger.db"
    told, tell = os.pipe()
    end = Gate()
    serving = children.start(serve(url, tell, end))
    start = Gate()  # not before: the server would keep it shut
    port = int.from_bytes(hear(told, 4), "big")
    shares = [RPCS // PROCESSES + (i < RPCS % PROCESSES) for i in range(PROCESSES)]
    clients = [children.start(many(url, port, share, RPCS, tell, start)) for share in shares]
    for _ in range(PROCESSES):
        assert hear(told, 1) == b"."
    began = time.monotonic()
    start.open()
    results = [result for client in clients for result in children.finish(client)]
    took = time.monotonic() - began
    codes = Counter(code for code, _ in results)
    debited = sum(account.spent for account in inspect(url).accounts)
    rest = children.run(the_rest(url, port))
    end.open()
    received = children.finish(serving)
    os.close(told)
    os.close(tell)

    assert len(results) == RPCS
    assert set(codes) <= {GOOD, *REFUSED}, codes
    assert max(seconds for _, seconds in results) <= DEADLINE + MARGIN
    # What was given up at its deadline may have been received, or was charged in vain.
    in_vain = codes[grpc.StatusCode.DEADLINE_EXCEEDED.name]
    assert codes[GOOD] + rest <= received <= MESSAGES
    assert codes[GOOD] + rest >= MESSAGES - in_vain
    assert codes[GOOD] >= MESSAGES // 2
    assert codes[GOOD] * EPSILON * AMOUNT <= debited <= (codes[GOOD] + in_vain) * EPSILON * AMOUNT
    assert inspect(url).accounts[0].spent <= MESSAGES * EPSILON * AMOUNT
    check(url, [])
    print(f"{dict(codes)} in {took:.1f} s, then {rest} more")
