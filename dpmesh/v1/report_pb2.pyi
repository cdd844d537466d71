from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class CategoryReport(_message.Message):
    __slots__ = ("value", "seed", "hash")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    value: str
    seed: int
    hash: int
    def __init__(self, value: _Optional[str] = ..., seed: _Optional[int] = ..., hash: _Optional[int] = ...) -> None: ...
