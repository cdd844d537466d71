"""Configuration: dpmesh.toml, whose keys can also be set in the environment.

DPMESH_SECTION_KEY overrides the file's [section] key. DPMESH_BUDGET_<NAME>_<KEY> overrides a key of the budget of that
name, and DPMESH_QUOTA_<NAME>_<KEY> one of the quota: the name is in capitals, with an underscore for every character
that is neither a letter nor a digit. Commas separate the items of lists, and '""' is an empty item.

Relative paths (of the policy file, of an SQLite ledger) start in the configuration file's folder, even if the
environment sets them, so all working directories share one budget. Without a file they start in the working directory.

Kubernetes gives every pod variables about every Service, and those about a Service called dpmesh begin with DPMESH_.
They are ignored. Every other unknown key is an error.

Errors quote what was written. They hide the values of unknown keys at the top and in [ledger], which may be a password
under a misspelled name, and the user and the password in URLs.
"""

from __future__ import annotations

from dpmesh.config.loading import load
from dpmesh.config.model import (
    DEFAULT_BUDGETS,
    BudgetConfig,
    Config,
    GrpcConfig,
    LedgerConfig,
    PolicyConfig,
    QuotaConfig,
    budgets,
    max_offline_seconds,
    poll_seconds,
    seconds,
)
from dpmesh.config.with_policy import with_policy

__all__ = [
    "DEFAULT_BUDGETS",
    "BudgetConfig",
    "Config",
    "GrpcConfig",
    "LedgerConfig",
    "PolicyConfig",
    "QuotaConfig",
    "budgets",
    "load",
    "max_offline_seconds",
    "poll_seconds",
    "seconds",
    "with_policy",
]
