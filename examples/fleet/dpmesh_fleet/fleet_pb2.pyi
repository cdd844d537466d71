from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_EWR: _ClassVar[Origin]
    ORIGIN_JFK: _ClassVar[Origin]
    ORIGIN_LGA: _ClassVar[Origin]

class Carrier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CARRIER_UNSPECIFIED: _ClassVar[Carrier]
    CARRIER_UA: _ClassVar[Carrier]
    CARRIER_B6: _ClassVar[Carrier]
    CARRIER_EV: _ClassVar[Carrier]
    CARRIER_DL: _ClassVar[Carrier]
    CARRIER_AA: _ClassVar[Carrier]
    CARRIER_MQ: _ClassVar[Carrier]
    CARRIER_US: _ClassVar[Carrier]
    CARRIER_9E: _ClassVar[Carrier]
    CARRIER_WN: _ClassVar[Carrier]
    CARRIER_FL: _ClassVar[Carrier]
    CARRIER_VX: _ClassVar[Carrier]
    CARRIER_AS: _ClassVar[Carrier]
    CARRIER_F9: _ClassVar[Carrier]
    CARRIER_YV: _ClassVar[Carrier]
    CARRIER_HA: _ClassVar[Carrier]
    CARRIER_OO: _ClassVar[Carrier]
ORIGIN_UNSPECIFIED: Origin
ORIGIN_EWR: Origin
ORIGIN_JFK: Origin
ORIGIN_LGA: Origin
CARRIER_UNSPECIFIED: Carrier
CARRIER_UA: Carrier
CARRIER_B6: Carrier
CARRIER_EV: Carrier
CARRIER_DL: Carrier
CARRIER_AA: Carrier
CARRIER_MQ: Carrier
CARRIER_US: Carrier
CARRIER_9E: Carrier
CARRIER_WN: Carrier
CARRIER_FL: Carrier
CARRIER_VX: Carrier
CARRIER_AS: Carrier
CARRIER_F9: Carrier
CARRIER_YV: Carrier
CARRIER_HA: Carrier
CARRIER_OO: Carrier

class FlightReport(_message.Message):
    __slots__ = ("tail_number", "origin", "dep_delay", "air_time", "carrier", "destination", "flight_number")
    TAIL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DEP_DELAY_FIELD_NUMBER: _ClassVar[int]
    AIR_TIME_FIELD_NUMBER: _ClassVar[int]
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    FLIGHT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    tail_number: str
    origin: Origin
    dep_delay: float
    air_time: float
    carrier: Carrier
    destination: str
    flight_number: int
    def __init__(self, tail_number: _Optional[str] = ..., origin: _Optional[_Union[Origin, str]] = ..., dep_delay: _Optional[float] = ..., air_time: _Optional[float] = ..., carrier: _Optional[_Union[Carrier, str]] = ..., destination: _Optional[str] = ..., flight_number: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: int
    def __init__(self, stored: _Optional[int] = ...) -> None: ...

class SummarizeRequest(_message.Message):
    __slots__ = ("month",)
    MONTH_FIELD_NUMBER: _ClassVar[int]
    month: str
    def __init__(self, month: _Optional[str] = ...) -> None: ...

class FleetSummary(_message.Message):
    __slots__ = ("origins", "carriers", "flights", "air_time")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    CARRIERS_FIELD_NUMBER: _ClassVar[int]
    FLIGHTS_FIELD_NUMBER: _ClassVar[int]
    AIR_TIME_FIELD_NUMBER: _ClassVar[int]
    origins: _containers.RepeatedCompositeFieldContainer[OriginSummary]
    carriers: _containers.RepeatedCompositeFieldContainer[CarrierSummary]
    flights: int
    air_time: int
    def __init__(self, origins: _Optional[_Iterable[_Union[OriginSummary, _Mapping]]] = ..., carriers: _Optional[_Iterable[_Union[CarrierSummary, _Mapping]]] = ..., flights: _Optional[int] = ..., air_time: _Optional[int] = ...) -> None: ...

class OriginSummary(_message.Message):
    __slots__ = ("origin", "flights", "dep_delay")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FLIGHTS_FIELD_NUMBER: _ClassVar[int]
    DEP_DELAY_FIELD_NUMBER: _ClassVar[int]
    origin: Origin
    flights: int
    dep_delay: int
    def __init__(self, origin: _Optional[_Union[Origin, str]] = ..., flights: _Optional[int] = ..., dep_delay: _Optional[int] = ...) -> None: ...

class CarrierSummary(_message.Message):
    __slots__ = ("carrier", "flights")
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    FLIGHTS_FIELD_NUMBER: _ClassVar[int]
    carrier: Carrier
    flights: int
    def __init__(self, carrier: _Optional[_Union[Carrier, str]] = ..., flights: _Optional[int] = ...) -> None: ...
