from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("enrolment_token", "certificate_request")
    ENROLMENT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    enrolment_token: str
    certificate_request: bytes
    def __init__(self, enrolment_token: _Optional[str] = ..., certificate_request: _Optional[bytes] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: Certificate
    def __init__(self, certificate: _Optional[_Union[Certificate, _Mapping]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("certificate_request", "proof")
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    certificate_request: bytes
    proof: Proof
    def __init__(self, certificate_request: _Optional[bytes] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: Certificate
    def __init__(self, certificate: _Optional[_Union[Certificate, _Mapping]] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("certificate", "time", "signature")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    time: int
    signature: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., time: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("chain", "trust_bundle")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TRUST_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    chain: bytes
    trust_bundle: bytes
    def __init__(self, chain: _Optional[bytes] = ..., trust_bundle: _Optional[bytes] = ...) -> None: ...

class GetTokenKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTokenKeysResponse(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[TokenKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[TokenKey, _Mapping]]] = ...) -> None: ...

class TokenKey(_message.Message):
    __slots__ = ("public_key", "not_before", "not_after")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    not_before: int
    not_after: int
    def __init__(self, public_key: _Optional[bytes] = ..., not_before: _Optional[int] = ..., not_after: _Optional[int] = ...) -> None: ...

class SignTokensRequest(_message.Message):
    __slots__ = ("truncated_token_key_id", "blinded_messages", "proof")
    TRUNCATED_TOKEN_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    BLINDED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    truncated_token_key_id: int
    blinded_messages: _containers.RepeatedScalarFieldContainer[bytes]
    proof: Proof
    def __init__(self, truncated_token_key_id: _Optional[int] = ..., blinded_messages: _Optional[_Iterable[bytes]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ...) -> None: ...

class SignTokensResponse(_message.Message):
    __slots__ = ("blind_signatures",)
    BLIND_SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    blind_signatures: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, blind_signatures: _Optional[_Iterable[bytes]] = ...) -> None: ...
