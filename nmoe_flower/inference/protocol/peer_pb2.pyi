from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("name", "partition", "expert_version", "gate_version", "extractor_version", "latent_dim", "num_classes", "queue", "served", "protocol", "max_rows", "num_experts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    GATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    LATENT_DIM_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    partition: int
    expert_version: str
    gate_version: str
    extractor_version: str
    latent_dim: int
    num_classes: int
    queue: int
    served: int
    protocol: int
    max_rows: int
    num_experts: int
    def __init__(self, name: _Optional[str] = ..., partition: _Optional[int] = ..., expert_version: _Optional[str] = ..., gate_version: _Optional[str] = ..., extractor_version: _Optional[str] = ..., latent_dim: _Optional[int] = ..., num_classes: _Optional[int] = ..., queue: _Optional[int] = ..., served: _Optional[int] = ..., protocol: _Optional[int] = ..., max_rows: _Optional[int] = ..., num_experts: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "rows", "columns", "data", "scales")
    class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Tensor.DType]
        FLOAT32: _ClassVar[Tensor.DType]
        FLOAT16: _ClassVar[Tensor.DType]
        INT8: _ClassVar[Tensor.DType]
    UNSPECIFIED: Tensor.DType
    FLOAT32: Tensor.DType
    FLOAT16: Tensor.DType
    INT8: Tensor.DType
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    dtype: Tensor.DType
    rows: int
    columns: int
    data: bytes
    scales: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, dtype: _Optional[_Union[Tensor.DType, str]] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., data: _Optional[bytes] = ..., scales: _Optional[_Iterable[float]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("request_id", "extractor_version", "expert_version", "latents")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    extractor_version: str
    expert_version: str
    latents: Tensor
    def __init__(self, request_id: _Optional[str] = ..., extractor_version: _Optional[str] = ..., expert_version: _Optional[str] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class PredictReply(_message.Message):
    __slots__ = ("request_id", "expert_version", "logits", "queue_ms", "compute_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    expert_version: str
    logits: Tensor
    queue_ms: float
    compute_ms: float
    def __init__(self, request_id: _Optional[str] = ..., expert_version: _Optional[str] = ..., logits: _Optional[_Union[Tensor, _Mapping]] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "extractor_version", "expert_version", "expert", "windows", "hidden", "tokens", "offsets")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    extractor_version: str
    expert_version: str
    expert: int
    windows: int
    hidden: Tensor
    tokens: bytes
    offsets: bool
    def __init__(self, request_id: _Optional[str] = ..., extractor_version: _Optional[str] = ..., expert_version: _Optional[str] = ..., expert: _Optional[int] = ..., windows: _Optional[int] = ..., hidden: _Optional[_Union[Tensor, _Mapping]] = ..., tokens: _Optional[bytes] = ..., offsets: _Optional[bool] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("request_id", "expert_version", "final", "log_probabilities", "offsets", "queue_ms", "compute_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    expert_version: str
    final: Tensor
    log_probabilities: Tensor
    offsets: Tensor
    queue_ms: float
    compute_ms: float
    def __init__(self, request_id: _Optional[str] = ..., expert_version: _Optional[str] = ..., final: _Optional[_Union[Tensor, _Mapping]] = ..., log_probabilities: _Optional[_Union[Tensor, _Mapping]] = ..., offsets: _Optional[_Union[Tensor, _Mapping]] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "extractor_version", "expert_version", "expert", "position", "hidden", "tokens", "count", "temperature", "seed", "end")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    extractor_version: str
    expert_version: str
    expert: int
    position: int
    hidden: Tensor
    tokens: bytes
    count: int
    temperature: float
    seed: int
    end: int
    def __init__(self, request_id: _Optional[str] = ..., extractor_version: _Optional[str] = ..., expert_version: _Optional[str] = ..., expert: _Optional[int] = ..., position: _Optional[int] = ..., hidden: _Optional[_Union[Tensor, _Mapping]] = ..., tokens: _Optional[bytes] = ..., count: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("request_id", "expert_version", "position", "token", "log_probability")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    expert_version: str
    position: int
    token: int
    log_probability: float
    def __init__(self, request_id: _Optional[str] = ..., expert_version: _Optional[str] = ..., position: _Optional[int] = ..., token: _Optional[int] = ..., log_probability: _Optional[float] = ...) -> None: ...

class PeersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PeerEntry(_message.Message):
    __slots__ = ("name", "partition", "address", "expert_version", "extractor_version", "embedding", "projection_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    partition: int
    address: str
    expert_version: str
    extractor_version: str
    embedding: bytes
    projection_version: str
    def __init__(self, name: _Optional[str] = ..., partition: _Optional[int] = ..., address: _Optional[str] = ..., expert_version: _Optional[str] = ..., extractor_version: _Optional[str] = ..., embedding: _Optional[bytes] = ..., projection_version: _Optional[str] = ...) -> None: ...

class PeerList(_message.Message):
    __slots__ = ("peers", "serial", "issued_unix", "expires_unix", "signature")
    PEERS_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[PeerEntry]
    serial: int
    issued_unix: int
    expires_unix: int
    signature: bytes
    def __init__(self, peers: _Optional[_Iterable[_Union[PeerEntry, _Mapping]]] = ..., serial: _Optional[int] = ..., issued_unix: _Optional[int] = ..., expires_unix: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...
