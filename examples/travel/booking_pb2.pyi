from google.protobuf import struct_pb2 as _struct_pb2
from google.type import date_pb2 as _date_pb2
from google.type import interval_pb2 as _interval_pb2
from google.type import latlng_pb2 as _latlng_pb2
from google.type import money_pb2 as _money_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Booking(_message.Message):
    __slots__ = ("traveller", "price", "deposit", "pickup", "stay", "birthday", "wishes")
    TRAVELLER_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    DEPOSIT_FIELD_NUMBER: _ClassVar[int]
    PICKUP_FIELD_NUMBER: _ClassVar[int]
    STAY_FIELD_NUMBER: _ClassVar[int]
    BIRTHDAY_FIELD_NUMBER: _ClassVar[int]
    WISHES_FIELD_NUMBER: _ClassVar[int]
    traveller: str
    price: _money_pb2.Money
    deposit: _money_pb2.Money
    pickup: _latlng_pb2.LatLng
    stay: _interval_pb2.Interval
    birthday: _date_pb2.Date
    wishes: _struct_pb2.Struct
    def __init__(self, traveller: _Optional[str] = ..., price: _Optional[_Union[_money_pb2.Money, _Mapping]] = ..., deposit: _Optional[_Union[_money_pb2.Money, _Mapping]] = ..., pickup: _Optional[_Union[_latlng_pb2.LatLng, _Mapping]] = ..., stay: _Optional[_Union[_interval_pb2.Interval, _Mapping]] = ..., birthday: _Optional[_Union[_date_pb2.Date, _Mapping]] = ..., wishes: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class BookingRequest(_message.Message):
    __slots__ = ("booking",)
    BOOKING_FIELD_NUMBER: _ClassVar[int]
    booking: Booking
    def __init__(self, booking: _Optional[_Union[Booking, _Mapping]] = ...) -> None: ...

class BookingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
