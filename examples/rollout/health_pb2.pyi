from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Health(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEALTH_GOOD: _ClassVar[Health]
    HEALTH_WORN: _ClassVar[Health]
    HEALTH_FAULTY: _ClassVar[Health]
    HEALTH_STOPPED: _ClassVar[Health]
HEALTH_GOOD: Health
HEALTH_WORN: Health
HEALTH_FAULTY: Health
HEALTH_STOPPED: Health

class Report(_message.Message):
    __slots__ = ("device", "health")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    device: str
    health: Health
    def __init__(self, device: _Optional[str] = ..., health: _Optional[_Union[Health, str]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
