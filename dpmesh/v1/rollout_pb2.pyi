from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("timestamp_version", "spread_ms", "refusals_within_ms")
    TIMESTAMP_VERSION_FIELD_NUMBER: _ClassVar[int]
    SPREAD_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_WITHIN_MS_FIELD_NUMBER: _ClassVar[int]
    timestamp_version: int
    spread_ms: int
    refusals_within_ms: int
    def __init__(self, timestamp_version: _Optional[int] = ..., spread_ms: _Optional[int] = ..., refusals_within_ms: _Optional[int] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("epoch", "digest", "pseudonym", "taken", "reason")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PSEUDONYM_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    digest: bytes
    pseudonym: bytes
    taken: bool
    reason: str
    def __init__(self, epoch: _Optional[int] = ..., digest: _Optional[bytes] = ..., pseudonym: _Optional[bytes] = ..., taken: bool = ..., reason: _Optional[str] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportRefusalsRequest(_message.Message):
    __slots__ = ("round", "epoch", "pseudonym", "noisy_refused")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PSEUDONYM_FIELD_NUMBER: _ClassVar[int]
    NOISY_REFUSED_FIELD_NUMBER: _ClassVar[int]
    round: int
    epoch: int
    pseudonym: bytes
    noisy_refused: bool
    def __init__(self, round: _Optional[int] = ..., epoch: _Optional[int] = ..., pseudonym: _Optional[bytes] = ..., noisy_refused: bool = ...) -> None: ...

class ReportRefusalsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
