from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_IDLE: _ClassVar[Status]
    STATUS_RUNNING: _ClassVar[Status]
    STATUS_FAULT: _ClassVar[Status]
STATUS_UNSPECIFIED: Status
STATUS_IDLE: Status
STATUS_RUNNING: Status
STATUS_FAULT: Status

class Reading(_message.Message):
    __slots__ = ("device", "temperature", "pressure", "humidity", "altitude", "satellites", "status", "charging", "zone")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    HUMIDITY_FIELD_NUMBER: _ClassVar[int]
    ALTITUDE_FIELD_NUMBER: _ClassVar[int]
    SATELLITES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    device: str
    temperature: float
    pressure: float
    humidity: float
    altitude: int
    satellites: int
    status: Status
    charging: bool
    zone: str
    def __init__(self, device: _Optional[str] = ..., temperature: _Optional[float] = ..., pressure: _Optional[float] = ..., humidity: _Optional[float] = ..., altitude: _Optional[int] = ..., satellites: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., charging: bool = ..., zone: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...
