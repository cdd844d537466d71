from dpmesh.v1 import privacy_pb2 as _privacy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Policy(_message.Message):
    __slots__ = ("version", "fields", "messages", "methods", "oneofs")
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
    version: str
    fields: _containers.MessageMap[str, _privacy_pb2.FieldRules]
    messages: _containers.MessageMap[str, _privacy_pb2.MessageRules]
    methods: _containers.MessageMap[str, _privacy_pb2.MethodRules]
    oneofs: _containers.MessageMap[str, _privacy_pb2.OneofRules]
    def __init__(self, version: _Optional[str] = ..., fields: _Optional[_Mapping[str, _privacy_pb2.FieldRules]] = ..., messages: _Optional[_Mapping[str, _privacy_pb2.MessageRules]] = ..., methods: _Optional[_Mapping[str, _privacy_pb2.MethodRules]] = ..., oneofs: _Optional[_Mapping[str, _privacy_pb2.OneofRules]] = ...) -> None: ...
