from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    ENFORCE: _ClassVar[Mode]
    OBSERVE: _ClassVar[Mode]
MODE_UNSPECIFIED: Mode
ENFORCE: Mode
OBSERVE: Mode

class Policy(_message.Message):
    __slots__ = ("version", "fields", "messages", "methods", "oneofs", "epoch", "mode", "budgets", "quotas", "may_be_missing")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _privacy_pb2.FieldRules
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_privacy_pb2.FieldRules, _Mapping]] = ...) -> None: ...
    class MessagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _privacy_pb2.MessageRules
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_privacy_pb2.MessageRules, _Mapping]] = ...) -> None: ...
    class MethodsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _privacy_pb2.MethodRules
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_privacy_pb2.MethodRules, _Mapping]] = ...) -> None: ...
    class OneofsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _privacy_pb2.OneofRules
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_privacy_pb2.OneofRules, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    ONEOFS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_MISSING_FIELD_NUMBER: _ClassVar[int]
    version: str
    fields: _containers.MessageMap[str, _privacy_pb2.FieldRules]
    messages: _containers.MessageMap[str, _privacy_pb2.MessageRules]
    methods: _containers.MessageMap[str, _privacy_pb2.MethodRules]
    oneofs: _containers.MessageMap[str, _privacy_pb2.OneofRules]
    epoch: int
    mode: Mode
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    may_be_missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., fields: _Optional[_Mapping[str, _privacy_pb2.FieldRules]] = ..., messages: _Optional[_Mapping[str, _privacy_pb2.MessageRules]] = ..., methods: _Optional[_Mapping[str, _privacy_pb2.MethodRules]] = ..., oneofs: _Optional[_Mapping[str, _privacy_pb2.OneofRules]] = ..., epoch: _Optional[int] = ..., mode: _Optional[_Union[Mode, str]] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ..., quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., may_be_missing: _Optional[_Iterable[str]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("name", "epsilon", "key", "delta", "threshold_delta", "accounting", "window", "on_exhausted", "methods", "messages", "directions", "labels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_DELTA_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTING_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ON_EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    epsilon: float
    key: str
    delta: float
    threshold_delta: float
    accounting: str
    window: str
    on_exhausted: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    messages: _containers.RepeatedScalarFieldContainer[str]
    directions: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., epsilon: _Optional[float] = ..., key: _Optional[str] = ..., delta: _Optional[float] = ..., threshold_delta: _Optional[float] = ..., accounting: _Optional[str] = ..., window: _Optional[str] = ..., on_exhausted: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ..., messages: _Optional[_Iterable[str]] = ..., directions: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("name", "under", "epsilon", "consumers", "methods", "messages", "directions", "labels", "on_exhausted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNDER_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ON_EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    under: str
    epsilon: float
    consumers: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    messages: _containers.RepeatedScalarFieldContainer[str]
    directions: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    on_exhausted: str
    def __init__(self, name: _Optional[str] = ..., under: _Optional[str] = ..., epsilon: _Optional[float] = ..., consumers: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., messages: _Optional[_Iterable[str]] = ..., directions: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ..., on_exhausted: _Optional[str] = ...) -> None: ...
