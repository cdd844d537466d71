import datetime

from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
FIELD_FIELD_NUMBER: _ClassVar[int]
field: _descriptor.FieldDescriptor
MESSAGE_FIELD_NUMBER: _ClassVar[int]
message: _descriptor.FieldDescriptor
METHOD_FIELD_NUMBER: _ClassVar[int]
method: _descriptor.FieldDescriptor
ONEOF_FIELD_NUMBER: _ClassVar[int]
oneof: _descriptor.FieldDescriptor

class FieldRules(_message.Message):
    __slots__ = ("unit", "numeric", "categorical", "location", "time", "vector", "histogram", "pseudonym", "suppress", "public", "message_id", "max_items", "length", "memoize")
    class Length(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HIDDEN: _ClassVar[FieldRules.Length]
        PUBLIC: _ClassVar[FieldRules.Length]
    HIDDEN: FieldRules.Length
    PUBLIC: FieldRules.Length
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_FIELD_NUMBER: _ClassVar[int]
    CATEGORICAL_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    PSEUDONYM_FIELD_NUMBER: _ClassVar[int]
    SUPPRESS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    MEMOIZE_FIELD_NUMBER: _ClassVar[int]
    unit: Unit
    numeric: Numeric
    categorical: Categorical
    location: Location
    time: Time
    vector: Vector
    histogram: Histogram
    pseudonym: Pseudonym
    suppress: Suppress
    public: Public
    message_id: MessageId
    max_items: int
    length: FieldRules.Length
    memoize: Memoize
    def __init__(self, unit: _Optional[_Union[Unit, _Mapping]] = ..., numeric: _Optional[_Union[Numeric, _Mapping]] = ..., categorical: _Optional[_Union[Categorical, _Mapping]] = ..., location: _Optional[_Union[Location, _Mapping]] = ..., time: _Optional[_Union[Time, _Mapping]] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ..., histogram: _Optional[_Union[Histogram, _Mapping]] = ..., pseudonym: _Optional[_Union[Pseudonym, _Mapping]] = ..., suppress: _Optional[_Union[Suppress, _Mapping]] = ..., public: _Optional[_Union[Public, _Mapping]] = ..., message_id: _Optional[_Union[MessageId, _Mapping]] = ..., max_items: _Optional[int] = ..., length: _Optional[_Union[FieldRules.Length, str]] = ..., memoize: _Optional[_Union[Memoize, _Mapping]] = ...) -> None: ...

class Memoize(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: _duration_pb2.Duration
    def __init__(self, epoch: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class MessageRules(_message.Message):
    __slots__ = ("epsilon", "unannotated", "labels", "pad_to")
    class Unannotated(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PASS: _ClassVar[MessageRules.Unannotated]
        SUPPRESS: _ClassVar[MessageRules.Unannotated]
        REJECT: _ClassVar[MessageRules.Unannotated]
    PASS: MessageRules.Unannotated
    SUPPRESS: MessageRules.Unannotated
    REJECT: MessageRules.Unannotated
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    UNANNOTATED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PAD_TO_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    unannotated: MessageRules.Unannotated
    labels: _containers.RepeatedScalarFieldContainer[str]
    pad_to: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epsilon: _Optional[float] = ..., unannotated: _Optional[_Union[MessageRules.Unannotated, str]] = ..., labels: _Optional[_Iterable[str]] = ..., pad_to: _Optional[_Iterable[int]] = ...) -> None: ...

class MethodRules(_message.Message):
    __slots__ = ("require", "labels", "send_slot", "trust_boundary", "require_policy")
    REQUIRE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEND_SLOT_FIELD_NUMBER: _ClassVar[int]
    TRUST_BOUNDARY_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_POLICY_FIELD_NUMBER: _ClassVar[int]
    require: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    send_slot: _duration_pb2.Duration
    trust_boundary: bool
    require_policy: RequiredPolicy
    def __init__(self, require: bool = ..., labels: _Optional[_Iterable[str]] = ..., send_slot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., trust_boundary: bool = ..., require_policy: _Optional[_Union[RequiredPolicy, _Mapping]] = ...) -> None: ...

class RequiredPolicy(_message.Message):
    __slots__ = ("min_epoch", "digests")
    MIN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    min_epoch: int
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, min_epoch: _Optional[int] = ..., digests: _Optional[_Iterable[str]] = ...) -> None: ...

class OneofRules(_message.Message):
    __slots__ = ("epsilon", "public")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    public: bool
    def __init__(self, epsilon: _Optional[float] = ..., public: bool = ...) -> None: ...

class Unit(_message.Message):
    __slots__ = ("form", "epoch", "normalize")
    class Form(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PSEUDONYM: _ClassVar[Unit.Form]
        SUPPRESSED: _ClassVar[Unit.Form]
        RAW: _ClassVar[Unit.Form]
    PSEUDONYM: Unit.Form
    SUPPRESSED: Unit.Form
    RAW: Unit.Form
    class Normalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        AS_IS: _ClassVar[Unit.Normalization]
        NFC: _ClassVar[Unit.Normalization]
        CASE_FOLD: _ClassVar[Unit.Normalization]
        STRIP: _ClassVar[Unit.Normalization]
    AS_IS: Unit.Normalization
    NFC: Unit.Normalization
    CASE_FOLD: Unit.Normalization
    STRIP: Unit.Normalization
    FORM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    form: Unit.Form
    epoch: _duration_pb2.Duration
    normalize: _containers.RepeatedScalarFieldContainer[Unit.Normalization]
    def __init__(self, form: _Optional[_Union[Unit.Form, str]] = ..., epoch: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., normalize: _Optional[_Iterable[_Union[Unit.Normalization, str]]] = ...) -> None: ...

class Numeric(_message.Message):
    __slots__ = ("lower", "upper", "epsilon", "delta", "mechanism", "resolution", "output", "sensitivity", "nan")
    class Mechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        AUTO: _ClassVar[Numeric.Mechanism]
        DISCRETE_LAPLACE: _ClassVar[Numeric.Mechanism]
        DISCRETE_GAUSSIAN: _ClassVar[Numeric.Mechanism]
        DUCHI: _ClassVar[Numeric.Mechanism]
        PIECEWISE: _ClassVar[Numeric.Mechanism]
        HYBRID: _ClassVar[Numeric.Mechanism]
        OPTIMIZED_PIECEWISE: _ClassVar[Numeric.Mechanism]
    AUTO: Numeric.Mechanism
    DISCRETE_LAPLACE: Numeric.Mechanism
    DISCRETE_GAUSSIAN: Numeric.Mechanism
    DUCHI: Numeric.Mechanism
    PIECEWISE: Numeric.Mechanism
    HYBRID: Numeric.Mechanism
    OPTIMIZED_PIECEWISE: Numeric.Mechanism
    class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNBIASED: _ClassVar[Numeric.Output]
        IN_RANGE: _ClassVar[Numeric.Output]
    UNBIASED: Numeric.Output
    IN_RANGE: Numeric.Output
    class NotANumber(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MIDDLE: _ClassVar[Numeric.NotANumber]
        REJECT: _ClassVar[Numeric.NotANumber]
    MIDDLE: Numeric.NotANumber
    REJECT: Numeric.NotANumber
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    SENSITIVITY_FIELD_NUMBER: _ClassVar[int]
    NAN_FIELD_NUMBER: _ClassVar[int]
    lower: float
    upper: float
    epsilon: float
    delta: float
    mechanism: Numeric.Mechanism
    resolution: float
    output: Numeric.Output
    sensitivity: float
    nan: Numeric.NotANumber
    def __init__(self, lower: _Optional[float] = ..., upper: _Optional[float] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., mechanism: _Optional[_Union[Numeric.Mechanism, str]] = ..., resolution: _Optional[float] = ..., output: _Optional[_Union[Numeric.Output, str]] = ..., sensitivity: _Optional[float] = ..., nan: _Optional[_Union[Numeric.NotANumber, str]] = ...) -> None: ...

class Categorical(_message.Message):
    __slots__ = ("epsilon", "domain", "mechanism")
    class Mechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        AUTO: _ClassVar[Categorical.Mechanism]
        K_RANDOMIZED_RESPONSE: _ClassVar[Categorical.Mechanism]
        SUBSET_SELECTION: _ClassVar[Categorical.Mechanism]
        OPTIMIZED_LOCAL_HASHING: _ClassVar[Categorical.Mechanism]
    AUTO: Categorical.Mechanism
    K_RANDOMIZED_RESPONSE: Categorical.Mechanism
    SUBSET_SELECTION: Categorical.Mechanism
    OPTIMIZED_LOCAL_HASHING: Categorical.Mechanism
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    domain: _containers.RepeatedScalarFieldContainer[str]
    mechanism: Categorical.Mechanism
    def __init__(self, epsilon: _Optional[float] = ..., domain: _Optional[_Iterable[str]] = ..., mechanism: _Optional[_Union[Categorical.Mechanism, str]] = ...) -> None: ...

class Location(_message.Message):
    __slots__ = ("epsilon_per_km", "epsilon", "radius_km", "min_latitude", "max_latitude", "min_longitude", "max_longitude", "resolution_km", "metric", "latitude", "longitude", "degrees_per_unit", "mechanism")
    class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LOCAL: _ClassVar[Location.Metric]
        GEO: _ClassVar[Location.Metric]
    LOCAL: Location.Metric
    GEO: Location.Metric
    class Mechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        AUTO: _ClassVar[Location.Mechanism]
        HEXAGONAL_GEOMETRIC: _ClassVar[Location.Mechanism]
        DISK_AREA: _ClassVar[Location.Mechanism]
    AUTO: Location.Mechanism
    HEXAGONAL_GEOMETRIC: Location.Mechanism
    DISK_AREA: Location.Mechanism
    EPSILON_PER_KM_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    RADIUS_KM_FIELD_NUMBER: _ClassVar[int]
    MIN_LATITUDE_FIELD_NUMBER: _ClassVar[int]
    MAX_LATITUDE_FIELD_NUMBER: _ClassVar[int]
    MIN_LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    MAX_LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_KM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    DEGREES_PER_UNIT_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    epsilon_per_km: float
    epsilon: float
    radius_km: float
    min_latitude: float
    max_latitude: float
    min_longitude: float
    max_longitude: float
    resolution_km: float
    metric: Location.Metric
    latitude: str
    longitude: str
    degrees_per_unit: float
    mechanism: Location.Mechanism
    def __init__(self, epsilon_per_km: _Optional[float] = ..., epsilon: _Optional[float] = ..., radius_km: _Optional[float] = ..., min_latitude: _Optional[float] = ..., max_latitude: _Optional[float] = ..., min_longitude: _Optional[float] = ..., max_longitude: _Optional[float] = ..., resolution_km: _Optional[float] = ..., metric: _Optional[_Union[Location.Metric, str]] = ..., latitude: _Optional[str] = ..., longitude: _Optional[str] = ..., degrees_per_unit: _Optional[float] = ..., mechanism: _Optional[_Union[Location.Mechanism, str]] = ...) -> None: ...

class Time(_message.Message):
    __slots__ = ("earliest", "latest", "largest_shift", "epsilon", "resolution", "step")
    class Step(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STEP_UNSPECIFIED: _ClassVar[Time.Step]
        NANOSECOND: _ClassVar[Time.Step]
        MICROSECOND: _ClassVar[Time.Step]
        MILLISECOND: _ClassVar[Time.Step]
        SECOND: _ClassVar[Time.Step]
        MINUTE: _ClassVar[Time.Step]
        HOUR: _ClassVar[Time.Step]
        DAY: _ClassVar[Time.Step]
    STEP_UNSPECIFIED: Time.Step
    NANOSECOND: Time.Step
    MICROSECOND: Time.Step
    MILLISECOND: Time.Step
    SECOND: Time.Step
    MINUTE: Time.Step
    HOUR: Time.Step
    DAY: Time.Step
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SHIFT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    earliest: str
    latest: str
    largest_shift: _duration_pb2.Duration
    epsilon: float
    resolution: _duration_pb2.Duration
    step: Time.Step
    def __init__(self, earliest: _Optional[str] = ..., latest: _Optional[str] = ..., largest_shift: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., epsilon: _Optional[float] = ..., resolution: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., step: _Optional[_Union[Time.Step, str]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("l1_norm", "l2_norm", "linf_norm", "dimension", "epsilon", "delta", "mechanism", "sensitivity", "resolution")
    class Mechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        AUTO: _ClassVar[Vector.Mechanism]
        PRIV_UNIT_G: _ClassVar[Vector.Mechanism]
        COORDINATE_SAMPLING: _ClassVar[Vector.Mechanism]
        DISCRETE_GAUSSIAN: _ClassVar[Vector.Mechanism]
        DISCRETE_LAPLACE: _ClassVar[Vector.Mechanism]
    AUTO: Vector.Mechanism
    PRIV_UNIT_G: Vector.Mechanism
    COORDINATE_SAMPLING: Vector.Mechanism
    DISCRETE_GAUSSIAN: Vector.Mechanism
    DISCRETE_LAPLACE: Vector.Mechanism
    L1_NORM_FIELD_NUMBER: _ClassVar[int]
    L2_NORM_FIELD_NUMBER: _ClassVar[int]
    LINF_NORM_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    SENSITIVITY_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    l1_norm: float
    l2_norm: float
    linf_norm: float
    dimension: int
    epsilon: float
    delta: float
    mechanism: Vector.Mechanism
    sensitivity: float
    resolution: float
    def __init__(self, l1_norm: _Optional[float] = ..., l2_norm: _Optional[float] = ..., linf_norm: _Optional[float] = ..., dimension: _Optional[int] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., mechanism: _Optional[_Union[Vector.Mechanism, str]] = ..., sensitivity: _Optional[float] = ..., resolution: _Optional[float] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("keys", "threshold", "contribution", "epsilon", "delta", "max_keys", "lower", "upper", "resolution")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    MAX_KEYS_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    threshold: float
    contribution: float
    epsilon: float
    delta: float
    max_keys: int
    lower: float
    upper: float
    resolution: float
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., threshold: _Optional[float] = ..., contribution: _Optional[float] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., max_keys: _Optional[int] = ..., lower: _Optional[float] = ..., upper: _Optional[float] = ..., resolution: _Optional[float] = ...) -> None: ...

class Pseudonym(_message.Message):
    __slots__ = ("epoch", "namespace")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    epoch: _duration_pb2.Duration
    namespace: str
    def __init__(self, epoch: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., namespace: _Optional[str] = ...) -> None: ...

class Suppress(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Public(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MessageId(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
