"""Every name that dpmesh gives to spans, attributes, events, metrics, labels and their values.

People type these names into tracing back ends and dashboards: renaming one breaks their searches.
"""

from __future__ import annotations

from typing import Final

# The instrumentation scope of all of them.
SCOPE: Final = "dpmesh"

# -- spans ---------------------------------------------------------------------------------------------------------
RELEASE: Final = "dpmesh.release"

# Attributes of the span.
RPC_METHOD: Final = "rpc.method"
DIRECTION: Final = "dpmesh.direction"
MESSAGE: Final = "dpmesh.message"
DECISION: Final = "dpmesh.decision"
EPSILON: Final = "dpmesh.epsilon"
DELTA: Final = "dpmesh.delta"
RHO: Final = "dpmesh.rho"
MECHANISMS: Final = "dpmesh.mechanisms"
FIELDS_COUNT: Final = "dpmesh.fields.count"
MESSAGES_COUNT: Final = "dpmesh.messages.count"
BUDGET_NAME: Final = "dpmesh.budget.name"
BUDGET_SPENT: Final = "dpmesh.budget.spent"
BUDGET_CAP: Final = "dpmesh.budget.cap"
BUDGET_STATE: Final = "dpmesh.budget.state"
POLICY_VERSION: Final = "dpmesh.policy.version"
POLICY_EPOCH: Final = "dpmesh.policy.epoch"
POLICY_STATE: Final = "dpmesh.policy.state"
UNIT: Final = "dpmesh.unit"

# The event on a stream's span when the budget's state changes; it carries BUDGET_STATE.
BUDGET_EVENT: Final = "dpmesh.budget"

# Values of DECISION. Unprotected messages have no span.
RELEASED: Final = "released"
REFUSED: Final = "refused"
REPLAYED: Final = "replayed"
SUPPRESSED: Final = "suppressed"
OBSERVED: Final = "observed"
UNPROTECTED: Final = "unprotected"

# The error status of every span whose decision is REFUSED. One fixed text, so that it can quote nothing.
REFUSED_STATUS: Final = "dpmesh refused to release the message"

# Values of BUDGET_STATE.
STATE_OK: Final = "ok"
STATE_LOW: Final = "low"
STATE_EXHAUSTED: Final = "exhausted"

# -- the span of an identity that comes into force -------------------------------------------------------------------
IDENTITY_ROTATE: Final = "dpmesh.identity.rotate"

# Its attributes: 1 for the first identity of a process; why it was fetched; for how many seconds the previous one is
# still valid.
IDENTITY_GENERATION: Final = "dpmesh.identity.generation"
IDENTITY_REASON: Final = "dpmesh.identity.reason"
IDENTITY_OVERLAP: Final = "dpmesh.identity.overlap"

# Values of IDENTITY_REASON. Callers of RotatingIdentity.renew() give others.
IDENTITY_OPENED: Final = "opened"
IDENTITY_DUE: Final = "due"
IDENTITY_EXPIRED: Final = "expired"
IDENTITY_CHANGED: Final = "changed"

# -- the span of what happens to a policy that is followed ------------------------------------------------------------
POLICY: Final = "dpmesh.policy"

# Its attributes are POLICY_EPOCH, and what happened: TAKEN, REFUSED, or a new state of POLICY_STATE.
POLICY_EVENT: Final = "dpmesh.policy.event"

# Values of POLICY_EVENT.
TAKEN: Final = "taken"

# -- metrics -------------------------------------------------------------------------------------------------------
PRIVACY_LOSS: Final = "dpmesh.privacy.loss"
RELEASES: Final = "dpmesh.releases"
RELEASE_DURATION: Final = "dpmesh.release.duration"
ITEMS_CUT: Final = "dpmesh.items.cut"
OBSERVED_REFUSALS: Final = "dpmesh.observed.refusals"
LEDGER_DURATION: Final = "dpmesh.ledger.duration"
IDENTITY_AGE: Final = "dpmesh.identity.age"
IDENTITY_FAILURES: Final = "dpmesh.identity.failures"
# Gauges; POLICY_STATE and POLICY_EPOCH are gauges, too.
POLICY_AGE: Final = "dpmesh.policy.age"

# Their labels; metrics have no others.
LABEL_METHOD: Final = "method"
LABEL_MECHANISM: Final = "mechanism"
LABEL_DECISION: Final = "decision"
LABEL_BUDGET: Final = "budget"
# The value of LABEL_METHOD for a method that no loaded proto has, as in OpenTelemetry's conventions for RPCs.
OTHER: Final = "_OTHER"
# Of IDENTITY_FAILURES alone: a reason of IdentityError.
LABEL_REASON: Final = "reason"
