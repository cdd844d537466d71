"""Messages, budgets and quotas that the tests of releases share."""

from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""message Report {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; double a = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}];
    bool b = 3 [{CAT} = {{epsilon: 0.5}}]; string kept = 4 [(dpmesh.v1.field).public = {{}}]; }}
    message Total {{ double sum = 1 [{NUM} = {{lower: 0 upper: 1e6 epsilon: 1 sensitivity: 100}}]; }}
    message Half {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 [{CAT} = {{epsilon: 0.5}}]; }}
    message Batch {{ repeated Report reports = 1; }}
    message Plain {{ string s = 1; }}
    message Noisy {{ double g = 1 [{NUM} = {{lower: 0 upper: 100 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}]; }}"""
)
DAY = 86_400.0
QUOTA = {"name": "each", "under": "unit-day", "epsilon": 2.0}


def settings(**changes):
    unit = {"name": "unit-day", "key": "unit", "epsilon": 3.0, "accounting": "pure", "window": "24h"}
    fleet = {"name": "fleet-day", "key": "global", "epsilon": 2.0, "accounting": "pure", "window": "24h"}
    return {"ledger": {"url": "memory:"}, "budget": [{**unit, **changes.pop("unit", {})}, fleet], **changes}


def report(unit="N1", **values):
    return TYPES.Report(id=unit, a=50, kept="k", **values)


def quotas(*entries, **changes):
    return {**settings(**changes), "quota": [{**QUOTA, **entry} for entry in entries or ({},)]}


async def charged(mesh):
    """What was charged, by budget; slices that are not used are returned first."""
    await mesh.ledger.close()
    await mesh.ledger.open()
    spent = {}
    for account in await mesh.ledger.accounts():
        spent.setdefault(account.budget, []).append(account.spent / 1e9)
    return {name: sorted(amounts) for name, amounts in spent.items()}
