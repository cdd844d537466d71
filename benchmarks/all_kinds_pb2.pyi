import datetime

from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from dpmesh.v1 import report_pb2 as _report_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_IDLE: _ClassVar[Stage]
    STAGE_RUNNING: _ClassVar[Stage]
    STAGE_FAULT: _ClassVar[Stage]
STAGE_UNSPECIFIED: Stage
STAGE_IDLE: Stage
STAGE_RUNNING: Stage
STAGE_FAULT: Stage

class Place(_message.Message):
    __slots__ = ("latitude", "longitude")
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    latitude: float
    longitude: float
    def __init__(self, latitude: _Optional[float] = ..., longitude: _Optional[float] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("device", "number_1", "number_2", "number_3", "number_4", "number_5", "number_6", "number_7", "number_8", "count_1", "count_2", "count_3", "count_4", "status_1", "status_2", "status_3", "status_4", "status_5", "at_1", "at_2", "at_3", "took", "place", "vector", "errors", "seen", "word", "session", "route", "id", "note")
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_1_FIELD_NUMBER: _ClassVar[int]
    NUMBER_2_FIELD_NUMBER: _ClassVar[int]
    NUMBER_3_FIELD_NUMBER: _ClassVar[int]
    NUMBER_4_FIELD_NUMBER: _ClassVar[int]
    NUMBER_5_FIELD_NUMBER: _ClassVar[int]
    NUMBER_6_FIELD_NUMBER: _ClassVar[int]
    NUMBER_7_FIELD_NUMBER: _ClassVar[int]
    NUMBER_8_FIELD_NUMBER: _ClassVar[int]
    COUNT_1_FIELD_NUMBER: _ClassVar[int]
    COUNT_2_FIELD_NUMBER: _ClassVar[int]
    COUNT_3_FIELD_NUMBER: _ClassVar[int]
    COUNT_4_FIELD_NUMBER: _ClassVar[int]
    STATUS_1_FIELD_NUMBER: _ClassVar[int]
    STATUS_2_FIELD_NUMBER: _ClassVar[int]
    STATUS_3_FIELD_NUMBER: _ClassVar[int]
    STATUS_4_FIELD_NUMBER: _ClassVar[int]
    STATUS_5_FIELD_NUMBER: _ClassVar[int]
    AT_1_FIELD_NUMBER: _ClassVar[int]
    AT_2_FIELD_NUMBER: _ClassVar[int]
    AT_3_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    device: str
    number_1: float
    number_2: float
    number_3: float
    number_4: float
    number_5: float
    number_6: float
    number_7: float
    number_8: float
    count_1: int
    count_2: int
    count_3: int
    count_4: int
    status_1: Stage
    status_2: Stage
    status_3: Stage
    status_4: Stage
    status_5: Stage
    at_1: _timestamp_pb2.Timestamp
    at_2: _timestamp_pb2.Timestamp
    at_3: _timestamp_pb2.Timestamp
    took: _duration_pb2.Duration
    place: Place
    vector: _containers.RepeatedScalarFieldContainer[float]
    errors: _containers.ScalarMap[str, int]
    seen: _containers.RepeatedScalarFieldContainer[Stage]
    word: _report_pb2.CategoryReport
    session: str
    route: str
    id: str
    note: str
    def __init__(self, device: _Optional[str] = ..., number_1: _Optional[float] = ..., number_2: _Optional[float] = ..., number_3: _Optional[float] = ..., number_4: _Optional[float] = ..., number_5: _Optional[float] = ..., number_6: _Optional[float] = ..., number_7: _Optional[float] = ..., number_8: _Optional[float] = ..., count_1: _Optional[int] = ..., count_2: _Optional[int] = ..., count_3: _Optional[int] = ..., count_4: _Optional[int] = ..., status_1: _Optional[_Union[Stage, str]] = ..., status_2: _Optional[_Union[Stage, str]] = ..., status_3: _Optional[_Union[Stage, str]] = ..., status_4: _Optional[_Union[Stage, str]] = ..., status_5: _Optional[_Union[Stage, str]] = ..., at_1: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., at_2: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., at_3: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., took: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., vector: _Optional[_Iterable[float]] = ..., errors: _Optional[_Mapping[str, int]] = ..., seen: _Optional[_Iterable[_Union[Stage, str]]] = ..., word: _Optional[_Union[_report_pb2.CategoryReport, _Mapping]] = ..., session: _Optional[str] = ..., route: _Optional[str] = ..., id: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...
