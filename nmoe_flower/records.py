"""The wire vocabulary: records, actions, keys, and tensors to and from Flower's ArrayRecord."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from nmoe_flower.codec import decode, encode
from nmoe_flower.errors import ReplyError

if TYPE_CHECKING:
    import torch

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)

__all__ = [
    "ANSWERS",
    "ARRAYS",
    "CENTRALIZED",
    "CHOSEN",
    "CONFIG",
    "CORRELATION",
    "EXPERT",
    "GATE",
    "HEAD",
    "HOLDOUT",
    "KEPT_ROUNDS",
    "LATENTS",
    "LEARNING_RATE",
    "LOSS",
    "MEANS",
    "METRICS",
    "MOMENTS",
    "MOST_ROUTED",
    "NOISE_MULTIPLIER",
    "NOISE_STD",
    "NUM_EXAMPLES",
    "NUM_PARTITIONS",
    "PARAMETERS",
    "PARTITION_ID",
    "POOLED",
    "POOLED_HEAD",
    "PROTOTYPE",
    "PROTOTYPES",
    "RIDGE",
    "SERVER_ROUND",
    "SHARED",
    "SHORTLIST",
    "STANDARD",
    "STANDARD_PART",
    "STATISTICS",
    "SUMS",
    "TEXT",
    "Action",
    "AlignmentKey",
    "BaselineKey",
    "ChosenKey",
    "ControlKey",
    "CorrelationKey",
    "Encoded",
    "ExpertKey",
    "FeedbackKey",
    "HoldingKey",
    "LinearKey",
    "MetricKey",
    "PooledKey",
    "Score",
    "ShortlistKey",
    "StatisticsKey",
    "StepKey",
    "SumsKey",
    "TextKey",
    "WatchKey",
    "array_bytes",
    "by_owner",
    "config_of",
    "decode",
    "encode",
    "from_numpy",
    "is_finite",
    "is_learned",
    "load_into",
    "metrics_of",
    "of_kind",
    "pack",
    "part_of",
    "reply",
    "require_finite",
    "restored",
    "to_numpy",
    "together",
    "weights_name",
]

# Every message: its records.
ARRAYS = "arrays"  # the weights that are trained, both ways
CONFIG = "config"  # settings down, plain answers up
METRICS = "metrics"  # up: what was measured

# Every node, by its config and in its answer to who it is.
PARTITION_ID = "partition-id"  # 0..N-1: which client it is
NUM_PARTITIONS = "num-partitions"  # N: how many clients there are

# Every round, down.
SERVER_ROUND = "server-round"  # 1, 2, ...
LEARNING_RATE = "learning-rate"  # of the clients' own steps, above 0
KEPT_ROUNDS = "kept-rounds"  # a resumed run may go on after any of these

# Every reply, up.
NUM_EXAMPLES = "num-examples"  # samples behind it, which weigh it
LOSS = "loss"  # mean over the steps taken
PARAMETERS = "parameters"  # how many numbers the client's expert has, up

# Further records of a message, and the groups of those names that a client keeps.
ANSWERS = "answers"  # both ways: what experts say to latents, by split
POOLED_HEAD = "pooled-head"  # up: what the pooled head says to the test images; see ControlKey
CHOSEN = "chosen"  # up: which latents of the tests go to whom; down: the answers; see ChosenKey
CENTRALIZED = "centralized"  # up: what the central mixture says to the test images; see ControlKey
CORRELATION = "correlation"  # both ways: see CorrelationKey
EXPERT = "expert"  # up: an expert's weights; down: everybody's, as <partition>/<name>
GATE = "gate"  # up: the initial gate; down, in front of a name: gate/<method>/<name>
HEAD = "head"  # up: the initial head; down, in front of a name: head/<name>
HOLDOUT = "holdout"  # in latents and answers, beside the tests: what the gate learns from
LATENTS = "latents"  # both ways: latents of images, by split
MEANS = "means"  # down, beside answers: those of the experts' normalised latents, as MEAN
POOLED = "pooled"  # both ways: everybody's hold-out, down by owner; see PooledKey
PROTOTYPE = "prototype"  # up: a client's mean latent, plain or normalised
PROTOTYPES = "prototypes"  # down, an array: everybody's mean latents, [N, D]
RIDGE = "ridge"  # down, in front of a name: ridge/<name>, the head solved from sums
SHARED = "shared"  # down: adapters of all clients, as <name>/<part>
SHORTLIST = "shortlist"  # down: whose answers a client learns the gate from; see ShortlistKey
STANDARD = "standard"  # kept: how latents are standardised while adapters are trained
STANDARD_PART = "extractor.standard."  # down, in front of a name: that, as a part of the extractor
STATISTICS = "statistics"  # up: see StatisticsKey
SUMS = "sums"  # up: see SumsKey
TEXT = "text"  # up: nats, bytes and tokens of tests, as <gate>/<test>/<TextKey>

# AdamW's moments of an adapter, both ways, in front of the names of its parts.
MOMENTS = ("first-moment/", "second-moment/")

# What is said of a private matrix, up.
NOISE_MULTIPLIER = "noise-multiplier"  # deviation of the noise over the sensitivity
NOISE_STD = "noise-std"  # deviation of the noise in each entry of the matrix


class Action(StrEnum):
    """Message types this app's ClientApp answers, a row each: ``<category>.<verb>``, and who does.

    Attributes:
        handler: ``module:function`` in `nmoe_flower.clients`, where no server needs to look;
            or, with its room, in `nmoe_flower.baselines`.
    """

    handler: str

    def __new__(cls, value: str, handler: str) -> Self:
        """A text with one more thing to tell."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.handler = handler
        return member

    # before anything is trained
    IDENTITY = "query.identity", "joining:tell_partition"
    DESCRIBE = "query.describe", "joining:tell_holdings"
    INITIAL = "query.initial", "joining:tell_initial"
    # stage 1
    STANDARD = "query.standard", "fedce:keep_standard"
    FEDCE = "train.extractor", "fedce:train"
    FEDCE_TEST = "evaluate.extractor", "fedce:test"
    FEDSC = "train.contrast", "fedsc:train"
    CORRELATION = "query.correlation", "fedsc:correlate"
    FEDSC_TEST = "evaluate.contrast", "fedsc:test"
    # stage 2
    SUMS = "query.sums", "sums:tell"
    LATENTS = "query.latents", "head:cache_latents"
    HEAD = "train.head", "head:train"
    EXPERT = "train.expert", "expert:train"
    ANSWER = "query.answer", "expert:answer"
    KEEP_ANSWERS = "query.answers", "expert:keep_answers"
    # stage 3
    GATE = "train.gate", "gate:train"
    ROLLING = "train.rolling", "gate:train_rolling"
    POOL = "query.pool", "gate:pool"
    POOLED = "train.pooled", "gate:train_pooled"
    # after it
    CHOOSE = "query.choices", "asking:choose_experts"
    CONTROL = "train.control", "control:train"
    ROUTE = "evaluate.route", "evaluate:route"
    # the second system
    MIXTURE = "query.mixture", "alignment:tell_mixture"
    GIVEN = "query.given", "alignment:keep_given"
    ALIGNMENT = "train.aligned", "alignment:train"
    PROBE = "query.probe", "alignment:probe"
    ALIGNMENT_TEST = "evaluate.aligned", "alignment:test"
    # language
    ADAPTER_INITIAL = "query.adapter", "language:initial"
    ADAPTER_EXPERT = "train.adapter", "language:train_expert"
    ADAPTER_ROUND = "train.adapters", "language:train_shared"
    ADAPTER_TEST = "evaluate.adapter", "language:test"
    HELD_OUT = "query.held_out", "hidden_gate:keep_held_out"
    TEXT_GATE = "train.text_gate", "hidden_gate:train"
    ADAPTER_SCORE = "evaluate.text", "text_scores:score"
    # published systems
    BASELINE_TRUNK = "query.trunk", "baselines.actions:keep_trunk"
    BASELINE_INITIAL = "query.baseline", "baselines.actions:tell_first_weights"
    BASELINE = "train.baseline", "baselines.actions:train"
    BASELINE_TEST = "evaluate.baseline", "baselines.actions:test"

    @property
    def category(self) -> str:
        """What kind of handler a ClientApp takes it for: ``train``, ``evaluate`` or ``query``."""
        return str(self).partition(".")[0]

    @property
    def verb(self) -> str:
        """The part a ClientApp registers: ``app.train("extractor")``."""
        return str(self).partition(".")[2]


class _Key(StrEnum):
    """A key of the wire; wherever it is shown it is the plain text it stands for."""

    def __repr__(self) -> str:
        return repr(self.value)


class HoldingKey(_Key):
    """What a client tells of its data, up: counts in the metrics, the rest in the config."""

    TRAIN_COUNTS = "train-counts"  # training images of each class, [C]
    TEST_COUNTS = "test-counts"  # test images of each class, skewed likewise, [C]
    VALIDATION_COUNTS = "validation-counts"  # validation images of each class, if any, [C]
    CLASSES = "classes"  # names of the classes, in the order of the labels
    FINGERPRINT = "fingerprint"  # a digest of the data
    EXTRACTOR = "extractor"  # the hash of a given extractor, hexadecimal; of none: not told
    PRECISION = "precision"  # float32 or bf16: what ``run.precision`` is on its machine


class ExpertKey(_Key):
    """Arrays of stage 2 in their records."""

    CARRIED = "carried"  # down, in the config: the client has an expert, and trains none
    MEAN = "mean"  # up, in PROTOTYPE: the mean latent of a client, [D]
    NORMAL_MEAN = "normal-mean"  # up, in PROTOTYPE: that of its normalised latents, [D]
    LATENTS = "latents"  # down, in LATENTS: everybody's latents, [N, D]
    LOGITS = "logits"  # up, in ANSWERS: what one expert says to them, [N, C]
    VALIDATION = "validation"  # both ways, beside them: the same for validation images, if any


class ShortlistKey(_Key):
    """Arrays of SHORTLIST: S experts of all, the client's own first."""

    EXPERTS = "experts"  # their ids, [S]
    LOG_WEIGHTS = "log-weights"  # minus the log of how likely each was to be on the list, [S]


class ChosenKey(_Key):
    """Arrays of CHOSEN: P pairs of a latent and an expert that a gate sends it to."""

    LATENTS = "latents"  # up: those of all tests that go anywhere, [N, D]
    ROWS = "rows"  # up: which of them, [P]
    EXPERTS = "experts"  # up: to whom, [P]
    LOGITS = "logits"  # down: what they say, [P, C]


class MetricKey(_Key):
    """Arrays of a gate that scores against embeddings; D numbers of a latent, d of an embedding."""

    PROJECTION = "projection"  # both ways, all that is trained, [d, D]
    EMBEDDINGS = "embeddings"  # down, for the evaluation, [E, d]


class PooledKey(_Key):
    """Arrays of POOLED, both ways: N rows of a client."""

    LATENTS = "latents"  # [N, D]
    ANSWERS = "answers"  # logits of every expert, or of a shortlist, [N, E, C]
    LABELS = "labels"  # [N]
    EXPERTS = "experts"  # whose answers these are, if of a shortlist, [N, E]
    LOG_WEIGHTS = "log-weights"  # as in ShortlistKey, [N, E]


class ControlKey(_Key):
    """How controls are trained and what comes of it."""

    CONTROLS = "controls"  # down: names; a list for training, joined by commas for the evaluation
    STEPS = "steps"  # down: of training, at least 1
    # up, in CENTRALIZED and POOLED_HEAD: of the test split, then of all validation images
    PROBABILITIES = "probabilities"  # [N, C]
    EXPERT_IDS = "expert-ids"  # who was asked, [N, K]


MOST_ROUTED = 200
"""Clients up to which each tells whom it asks: the matrix of all grows with their square."""


class Score(_Key):
    """What a test measures, up: after or before the names of gate and test."""

    ACCURACY = "accuracy"  # fraction
    BALANCED_ACCURACY = "balanced-accuracy"  # fraction
    MACRO_F1 = "macro-f1"  # fraction
    AUC = "auc"  # fraction; missing where all labels are one class
    LOCAL_RATIO = "local-ratio"  # fraction of the samples that stay at home
    BYTES_PER_SAMPLE = "bytes-per-sample"  # on the network, both ways
    ROUTING = "routing"  # fractions of the samples that go to each expert, [E]
    RIGHT_OF = "right-of"  # samples that are answered rightly, by owner and of nobody's, [E + 1]
    ASKED_OF = "asked-of"  # samples by owner and of nobody's, [E + 1]


class WatchKey(_Key):
    """What a client sees in FedSC's features, up."""

    ALIGNMENT = "alignment"  # mean squared distance of two views, 0..4
    UNIFORMITY = "uniformity"  # log of a mean potential, at most 0
    KNN_ACCURACY = "knn-accuracy"  # fraction
    PROBE_ACCURACY = "probe-accuracy"  # fraction


class TextKey(_Key):
    """What is said of text, adapters and how well they predict it."""

    BACKBONE = "backbone"  # both ways, beside an adapter: SHA-256 of what it is for, uint8 [32]
    TOKENIZER = "tokenizer"  # up, in the config: SHA-256 of what makes the tokens
    FREQUENCIES = "frequencies"  # both ways, an array: log-probability of each token, [V], [E, V]
    DOMAINS = "domains"  # down, an array: the main domain of each client's text, [E]
    RANK = "rank"  # down: of a fresh adapter
    NATS = "nats"  # up: negative log-likelihood of all scored tokens
    BYTES = "bytes"  # up: of text that the scored tokens stand for
    TOKENS = "tokens"  # up: how many are scored
    RATE = "rate"  # up: the learning rate that an expert was kept with
    STANDARD_MEAN = "standard-mean"  # down, an array: the mean state, [d]
    STANDARD_SCALE = "standard-scale"  # down, an array: 1 / the deviation of each number, [d]

    @classmethod
    def standard(cls) -> tuple[Self, Self]:
        """The arrays of a standardisation of hidden states."""
        return cls.STANDARD_MEAN, cls.STANDARD_SCALE


class AlignmentKey(_Key):
    """What is said of a federated mixture beside its arrays."""

    EXPERTS = "experts"  # down: names of the assigned experts, in the order of their ids
    LOADS = "loads"  # down: samples each expert was sent so far, by the gates' shares, [E]
    FINAL = "final"  # down: training is over, measure everything
    EXPERT_PARAMETERS = "expert-parameters"  # up: how many numbers an expert has


class BaselineKey(_Key):
    """What is said in the rounds of a published system, and in its tests."""

    ANCHOR = "anchor"  # down: the number of the one expert that this client trains
    ACCURACIES = "expert-accuracies"  # up: of the images each of all E experts was given, [E]
    FINAL = "final"  # down: training is over, measure everything
    MASSES = "masses"  # up: weight of the client's part in each of all E experts, [E]
    USAGE = "usage"  # up: share of the client's images at each of all E experts, [E]
    PROXIMAL = "proximal-mu"  # down: weight of the distance to what was received, as in Flower


class StatisticsKey(_Key):
    """Sums of a gate's inputs, in STATISTICS, and how they are asked for."""

    WANT_MOMENT = "want-moment"  # down: send the moment too
    SUMS = "sums"  # up: of [latent, 1] and the count, per held expert, [k, D + 2]
    MOMENT = "moment"  # up: upper triangle of the sum of outer products, [(D + 1)(D + 2) / 2]


class SumsKey(_Key):
    """Sums over a client's latents, in SUMS, and how they are asked for."""

    MOMENTS = "moments"  # down: only count, mean and squares are wanted
    COUNT = "count"  # up: n, a whole number
    MEAN = "mean"  # up: the mean latent, [D]
    SQUARES = "squares"  # up, in place of what follows: sum of (x - mean)^2, [D]
    SCATTER = "scatter"  # up: upper triangle of the sum of (x - mean)(x - mean)^T, [D (D + 1) / 2]
    PRIVATE = "private"  # up, in place of all but the count: svec of a noisy R, latents and labels
    CLASS_COUNTS = "class-counts"  # up: latents of each class, [C]
    CLASS_SUMS = "class-sums"  # up: their sums about the mean, [C, D]


class LinearKey(_Key):
    """A gate whose scores are linear in a latent or a mean state, both ways."""

    WEIGHT = "weight"  # a row for each expert, [E, D]
    BIAS = "bias"  # [E]


class CorrelationKey(_Key):
    """How a round of FedSC speaks of correlation matrices, in arrays and settings."""

    MEAN = "mean"  # down: svec of the mean of all clients
    PACKED = "packed"  # up: svec of the client's own
    TOTAL = "correlation-examples"  # samples behind the mean
    SHRUNK = "correlation-shrunk"  # the mean has lost every client's noise
    OWN_ROUND = "correlation-round"  # when this client's part of the mean was sent; 0: none
    RELEASE = "correlation-release"  # send a new one
    SHARE = "correlation-share"  # weight of the own matrix in the loss; absent: share of samples


class FeedbackKey(_Key):
    """What a client tells of the experts it trained, in the metrics of a reply."""

    EXPERTS = "expert-ids"  # both ways: the k experts of this client, each 0..E-1
    LOSSES = "expert-losses"  # mean loss of each on held-out samples
    SAMPLES = "expert-samples"  # how many samples trained each
    SHARES = "expert-shares"  # of the held-out samples, sent by the gate to each of all E experts
    SECONDS = "seconds"  # that the training took


class StepKey(_Key):
    """What a client that trains with DP-SGD tells of its account, in the metrics of a reply."""

    STEPS = "weights-steps"  # paid for so far
    EPSILON = "weights-epsilon"  # of them, for one sample added or removed
    REPLACED = "weights-epsilon-replaced"  # of them, for one sample replaced
    SPENT = "weights-spent"  # 1: the budget did not pay for this round; the weights are as received


def from_numpy(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Named arrays as one ArrayRecord."""
    return ArrayRecord({name: encode(value) for name, value in arrays.items()})


def to_numpy(record: ArrayRecord) -> dict[str, np.ndarray]:
    """One ArrayRecord as named read-only arrays.

    Raises:
        ReplyError: An array cannot be read; its name is in the text.
    """
    arrays = {}
    for name, array in record.items():
        try:
            arrays[name] = decode(array)
        except ReplyError as error:
            raise ReplyError(f"{name}: {error}") from None
    return arrays


def together(parts: Mapping[Any, ArrayRecord]) -> ArrayRecord:
    """Records of several owners as one, ``{"3/<name>": ...}``; no array is copied."""
    return ArrayRecord(
        {f"{owner}/{name}": array for owner, part in parts.items() for name, array in part.items()}
    )


def by_owner(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays that are named as by `together`, by owner and name, in order.

    >>> by_owner({"3/w": np.ones(1), "3/layers/0": np.zeros(1)})
    {'3': {'w': array([1.]), 'layers/0': array([0.])}}
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, value in arrays.items():
        owner, _, name = key.partition("/")
        parts.setdefault(owner, {})[name] = value
    return parts


class Encoded:
    """A round's arrays as they came, decoded once and sent on, in parts, without encoding them.

    Who is sent the same of them gets the same record, which an engine writes once for all.

    Args:
        record: The arrays as a strategy is given them.

    Attributes:
        arrays: They, decoded: read-only.

    Raises:
        ReplyError: An array cannot be read; its name is in the text.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self.arrays = to_numpy(record)
        self._known = {id(self.arrays[name]): array for name, array in record.items()}
        self._sent: dict[tuple[tuple[str, int], ...], ArrayRecord] = {}

    def record(self, arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
        """What is sent of them, under any names, and with any others, as one ArrayRecord."""
        part = tuple((name, id(value)) for name, value in arrays.items())
        if part in self._sent:
            return self._sent[part]
        found = ArrayRecord(
            {name: self._known.get(id(value)) or encode(value) for name, value in arrays.items()}
        )
        if all(known in self._known for _, known in part):  # whose identities stay theirs
            self._sent[part] = found
        return found


def pack(tensors: Mapping[str, "torch.Tensor"]) -> ArrayRecord:
    """A state dict as one ArrayRecord; bfloat16, which NumPy lacks, travels as float32."""
    arrays = {}
    for name, tensor in tensors.items():
        plain = tensor.detach()
        if str(plain.dtype) == "torch.bfloat16":
            plain = plain.float()
        arrays[name] = encode(plain.cpu().numpy())
    return ArrayRecord(arrays)


def is_learned(name: str) -> bool:
    """Whether stage 1 trains the part of a classifier of this name: no hash, no standardisation.

    >>> is_learned("extractor.standard.mean"), is_learned("head.layers.0.bias")
    (False, True)
    """
    return not name.startswith(("extractor.hash", STANDARD_PART))


def load_into(
    tensors: Mapping[str, "torch.Tensor"], arrays: Mapping[str, np.ndarray], *, prefix: str = ""
) -> None:
    """Copy ``arrays[prefix + name]`` into each tensor in place, restoring its dtype.

    Raises:
        ReplyError: A name is missing or a shape differs.
    """
    import torch

    for name, tensor in tensors.items():
        value = arrays.get(prefix + name)
        if value is None:
            raise ReplyError(f"array {prefix + name!r} is missing")
        if value.shape != tuple(tensor.shape):
            raise ReplyError(f"{prefix + name}: shape {value.shape}, wanted {tuple(tensor.shape)}")
        if tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16:
            np.copyto(tensor.detach().numpy(), value, casting="unsafe")
        else:
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(value.copy()))


def restored(
    arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The finite arrays of a reply in the order, and in the dtypes, of those that were sent out.

    Clients may name their arrays in any order and count in any precision: a number that the dtype
    sent can hold is converted to it, to the nearest where that is a float. One that it cannot hold
    is refused: a float too large for a narrower float, a fraction for an integer, an integer out of
    range, anything but 0 and 1 for a boolean.

    Args:
        arrays: What came back, after ``require_finite``.
        like: What was sent: names, shapes and dtypes.

    Returns:
        New dictionary; arrays whose dtype was right are the same objects.

    Raises:
        ReplyError: With the name of the first array that does not fit, and why.
    """
    if arrays.keys() != like.keys():
        missing = sorted(like.keys() - arrays.keys())
        unknown = sorted(arrays.keys() - like.keys())
        raise ReplyError(f"array names differ: missing {missing}, unknown {unknown}")
    for name, wanted in like.items():
        if arrays[name].shape != wanted.shape:
            raise ReplyError(f"{name}: shape {arrays[name].shape}, wanted {wanted.shape}")
    return {name: _converted(name, arrays[name], wanted.dtype) for name, wanted in like.items()}


def require_finite(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Refuse arrays that are not numbers, or not finite.

    Returns:
        The sum of squares of every float array, which shows NaN and infinity in one cheap pass;
        infinite where finite numbers are so large.

    Raises:
        ReplyError: With the name of the first one.
    """
    squares = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, value in arrays.items():
            if value.dtype.kind == "f":
                found = squares[name] = float(np.vdot(value, value))
                if not (found < np.inf or np.isfinite(value).all()):
                    raise ReplyError(f"{name}: has NaN or infinite entries")
            elif value.dtype.kind not in "iub":
                raise ReplyError(f"{name}: dtype {value.dtype} is not numeric")
    return squares


def is_finite(value: np.ndarray) -> bool:
    """Whether an array has neither NaN nor infinite entries."""
    if value.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.vdot(value, value) < np.inf or np.isfinite(value).all())


def _converted(name: str, value: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The same numbers in another dtype.

    Raises:
        ReplyError: It cannot hold one of them.
    """
    if value.dtype == dtype or not value.size:
        return value.astype(dtype, copy=False)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            converted = value.astype(dtype)
        if not is_finite(converted):
            raise ReplyError(f"{name}: {value.dtype} values up to {_peak(value):g} exceed {dtype}")
        return converted
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if value.dtype.kind == "f" and not (value == np.rint(value)).all():
        raise ReplyError(f"{name}: {value.dtype} values are not whole, wanted {dtype}")
    if int(value.min()) < low or int(value.max()) > high:
        raise ReplyError(f"{name}: {value.dtype} values exceed {dtype} ({low} to {high})")
    return value.astype(dtype)


def _peak(value: np.ndarray) -> float:
    return max(float(value.max()), -float(value.min()))


def part_of(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def of_kind(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """The records of one kind, by name, as ``content.array_records`` gives them.

    What Flower's own property gives refers to itself: the arrays of every reply that was looked at
    with it would stay until Python next collects cycles, which is dozens of large replies later.

    Args:
        content: What a message holds.
        kind: One of ``ArrayRecord``, ``MetricRecord`` and ``ConfigRecord``.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def array_bytes(content: RecordDict) -> int:
    """Bytes of every array in a message: what the wire is charged for."""
    records = of_kind(content, ArrayRecord).values()
    return sum(len(array.data or b"") for record in records for array in record.values())


def reply(
    message: Message,
    *,
    metrics: Mapping[str, float | int | list[float] | list[int]],
    arrays: Mapping[str, ArrayRecord] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Message:
    """Answer ``message``; metrics must hold ``num-examples`` if the answer is to be averaged."""
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = dict(arrays or {})
    content[METRICS] = MetricRecord({key: _plain(value) for key, value in metrics.items()})
    if config:
        content[CONFIG] = ConfigRecord(dict(config))
    return Message(RecordDict(content), reply_to=message)


def _plain(value: float | int | list[float] | list[int]) -> Any:
    """NumPy scalars are refused by MetricRecord."""
    if isinstance(value, list):
        return value
    return int(value) if isinstance(value, int | np.integer) else float(value)


def config_of(message: Message) -> Mapping[str, Any]:
    """The message's ConfigRecord: of this app's name, or the only one; empty if it has none."""
    found = of_kind(message.content, ConfigRecord)
    return found.get(_named(found, CONFIG), {})


def weights_name(content: RecordDict) -> str:
    """What the record of weights is called: as in this app, or as the only one is."""
    return _named(of_kind(content, ArrayRecord).keys() - {CORRELATION}, ARRAYS)


def _named(names: Collection[str], usual: str) -> str:
    return next(iter(names)) if len(names) == 1 else usual


def metrics_of(content: RecordDict) -> Mapping[str, Any]:
    """The MetricRecord of a reply of this app."""
    return of_kind(content, MetricRecord)[METRICS]
