from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_IDLE: _ClassVar[State]
    STATE_RUNNING: _ClassVar[State]
STATE_UNSPECIFIED: State
STATE_IDLE: State
STATE_RUNNING: State

class Reading(_message.Message):
    __slots__ = ("station", "temperature", "state", "levels", "note", "payload", "exact")
    STATION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    station: str
    temperature: float
    state: State
    levels: _containers.RepeatedScalarFieldContainer[int]
    note: str
    payload: bytes
    exact: float
    def __init__(self, station: _Optional[str] = ..., temperature: _Optional[float] = ..., state: _Optional[_Union[State, str]] = ..., levels: _Optional[_Iterable[int]] = ..., note: _Optional[str] = ..., payload: _Optional[bytes] = ..., exact: _Optional[float] = ...) -> None: ...

class Stray(_message.Message):
    __slots__ = ("station", "rain")
    STATION_FIELD_NUMBER: _ClassVar[int]
    RAIN_FIELD_NUMBER: _ClassVar[int]
    station: str
    rain: bool
    def __init__(self, station: _Optional[str] = ..., rain: bool = ...) -> None: ...

class Plain(_message.Message):
    __slots__ = ("text", "payload")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    text: str
    payload: bytes
    def __init__(self, text: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...
