"""What a peer does with text: scores windows, and goes on with texts whose keys it keeps."""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import WireError
from nmoe_flower.inference.bundle import (
    Drawn,
    Session,
    TextBundle,
    TextExperts,
    TextStep,
    Writing,
)
from nmoe_flower.inference.protocol import (
    MAX_ID,
    Encoding,
    decode_tensor,
    decode_tokens,
    encode_hidden,
    encode_tensor,
    parse,
    peer_pb2,
)
from nmoe_flower.inference.serve.requests import RefusedError, Requests
from nmoe_flower.inference.serve.text_steps import TextSteps
from nmoe_flower.plurals import how_many

__all__ = ["ServedText", "TextLimits", "TextRequests"]

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_IDLE_SECONDS = 60.0  # that a text may wait for what follows
_ENCODINGS: dict[int, Encoding] = {
    peer_pb2.Tensor.FLOAT32: "float32",
    peer_pb2.Tensor.FLOAT16: "float16",
    peer_pb2.Tensor.INT8: "int8",
}
_BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
_DENIED = grpc.StatusCode.PERMISSION_DENIED


class _Done(NamedTuple):
    """What a pass gave, and how long it waited and took, in seconds."""

    value: Any
    waited: float
    took: float


class TextLimits(NamedTuple):
    """How much text a peer takes at once; of open texts a caller with a name may have half.

    Attributes:
        queue: The most tokens that may wait.
        texts: The most texts that may be open.
        mib: The most MiB that keys and values of all open texts may fill.
    """

    queue: int
    texts: int
    mib: float


class _Kept(NamedTuple):
    """An open text: whose it is, and the tokens that it may come to."""

    caller: str
    tokens: int


class ServedText:
    """A bundle of text that answers; passes take turns in one thread.

    Args:
        bundle: What it was loaded from.
        experts: The bundle's adapters on the backbone.
        executor: The thread.
        limits: How much it takes at once.
        on_pass: Called with the tokens and the seconds of every pass.

    Attributes:
        bundle: What it was loaded from.
        experts: The bundle's adapters on the backbone.
        steps: Where texts wait to go on.
    """

    def __init__(
        self,
        bundle: TextBundle,
        experts: TextExperts,
        executor: Executor,
        *,
        limits: TextLimits,
        on_pass: Callable[[int, float], None],
    ) -> None:
        self.bundle = bundle
        self.experts = experts
        most = limits.texts if experts.joins else 1
        self.steps = TextSteps(experts.go_on, executor, most=most, on_pass=on_pass)
        self._scoring = 0  # tokens that wait to be scored
        self._executor = executor
        self._limits = limits
        self._on_pass = on_pass
        self._kept: dict[Session, _Kept] = {}  # the open texts

    @property
    def waiting_rows(self) -> int:
        """Tokens that wait for their turn."""
        return self._scoring + self.steps.waiting_rows

    @property
    def sessions(self) -> int:
        """Texts that may go on."""
        return len(self._kept)

    def fits(self, request: peer_pb2.ScoreRequest | peer_pb2.GenerateRequest) -> bool:
        """Whether it holds the expert that is asked for, on the backbone that is meant."""
        version = self.bundle.version_of(request.expert)
        return (
            bool(version)
            and request.extractor_version == self.bundle.extractor_version
            and request.expert_version in ("", version)
        )

    async def compute(self, rows: int, work: Callable[[], T]) -> _Done:
        """Do ``work`` when it is its turn.

        Args:
            rows: Tokens it is about.
            work: Called in the thread.
        """
        self._check_queue(rows)
        since = time.perf_counter()

        def timed() -> _Done:
            began = time.perf_counter()
            value = work()
            return _Done(value, began - since, time.perf_counter() - began)

        self._scoring += rows
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._executor, timed)
        finally:
            self._scoring -= rows
        self._on_pass(rows, done.took)
        return done

    async def go_on(self, step: TextStep) -> Drawn | None:
        """Read what comes next in a text when it is its turn, beside others; draw what follows.

        Args:
            step: What comes next.
        """
        self._check_queue(len(step.rows))
        return await self.steps.go_on(step)

    def open(self, session: Session, caller: str = "") -> None:
        """Let a text begin, unless as many are open as may be.

        Args:
            session: The text.
            caller: Name of the device whose text it is; empty: it has none, and the limits for all
                are its own.
        """
        if len(self._kept) >= self._limits.texts:
            told = how_many(len(self._kept), "text is", "texts are")
            raise RefusedError(_BUSY, "busy", f"busy: {told} open, as many as may be")
        own = sum(one.caller == caller for one in self._kept.values())
        if caller and own >= max(1, self._limits.texts // 2):
            told = how_many(own, "text is", "texts are")
            raise RefusedError(
                _BUSY, "busy", f"busy: {told} open for {caller}, as many as one caller may have"
            )
        self._kept[session] = _Kept(caller, 0)

    def keep(self, session: Session, tokens: int) -> None:
        """Let a text grow, unless keys and values of all texts, or of its caller's, fill too much.

        Args:
            session: The text.
            tokens: How long it may become.
        """
        caller = self._kept[session].caller
        others = [one for text, one in self._kept.items() if text is not session]
        self._check_kept(tokens, others, "other texts", self._limits.mib)
        if caller:
            own = [one for one in others if one.caller == caller]
            self._check_kept(tokens, own, f"other texts of {caller}", self._limits.mib / 2)
        self._kept[session] = _Kept(caller, tokens)

    def close(self, session: Session) -> None:
        """Nothing more comes of a text.

        Args:
            session: The text.
        """
        del self._kept[session]
        self.steps.leave(session)

    def _check_kept(self, tokens: int, others: Iterable[_Kept], whose: str, most: float) -> None:
        """Refuse a text that would fill more than ``most`` MiB beside others."""
        beside = sum(one.tokens for one in others)
        mib = (beside + tokens) * self.experts.kept_bytes / 2**20
        if mib > most:
            raise RefusedError(
                _BUSY,
                "busy",
                f"busy: keys and values of {how_many(tokens, 'token')} beside {beside:,} of "
                f"{whose} would fill {mib:.1f} MiB; allowed: {most:g}",
            )

    def _check_queue(self, rows: int) -> None:
        if self.waiting_rows + rows > self._limits.queue:
            raise RefusedError(_BUSY, "busy", "busy: the queue is full")


class TextRequests(Requests[ServedText]):
    """What a peer does with questions about text."""

    async def predict(self, data: bytes, context: Any) -> peer_pb2.PredictReply:
        """Refused: there are no latents of images here."""

        async def answer(caller: str) -> peer_pb2.PredictReply:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "version",
                "this peer answers questions about text, not about images",
            )

        return await self.guarded(answer, context)

    async def score(self, data: bytes, context: Any) -> peer_pb2.ScoreReply:
        """What an adapter makes of windows of text."""
        return await self.guarded(lambda caller: self._score(data, caller), context)

    async def generate(self, requests: Any, context: Any) -> None:
        """Text that goes on, token by token."""
        await self.guarded(lambda caller: self._generate(context, caller), context)

    async def _score(self, data: bytes, caller: str) -> peer_pb2.ScoreReply:
        started = time.perf_counter()
        self.metrics.received.inc(len(data))
        self.check_open()
        request = parse(peer_pb2.ScoreRequest, data)
        served = self._served_for(request)
        experts, expert = served.experts, request.expert
        reply = peer_pb2.ScoreReply(
            request_id=request.request_id, expert_version=served.bundle.version_of(expert)
        )
        rows: Any = (
            self._tokens(request, served) if request.tokens else self._hidden(request, served)
        )
        count = request.windows
        if not 1 <= count <= len(rows) or len(rows) % count:
            raise WireError("shape", f"{len(rows)} tokens are no {count} windows of one length")
        windows = rows.reshape(count, len(rows) // count, *rows.shape[1:])
        least = 2 if request.tokens else 1
        if not least <= windows.shape[1] <= experts.context:
            raise WireError(
                "context",
                f"windows of {windows.shape[1]} tokens; allowed: {least} to {experts.context}",
            )

        def work() -> Floats:
            if not request.tokens:
                return experts.upper(expert, windows)
            final = experts.upper(expert, experts.lower(windows[:, :-1]))
            return experts.losses(final, experts.offsets(expert), windows[:, 1:])

        with self.held(caller, len(rows)):
            done = await served.compute(len(rows), work)
        if request.tokens:
            reply.log_probabilities.CopyFrom(encode_tensor(-done.value, "float32"))
        else:
            encoding = _ENCODINGS[request.hidden.dtype]
            reply.final.CopyFrom(encode_hidden(done.value.reshape(len(rows), -1), encoding))
            if request.offsets:
                reply.offsets.CopyFrom(encode_tensor(experts.offsets(expert)[None], "float16"))
        reply.queue_ms, reply.compute_ms = 1000 * done.waited, 1000 * done.took
        self.answered += 1
        self.metrics.answered(
            caller,
            rows=len(rows),
            size=reply.ByteSize(),
            seconds=time.perf_counter() - started,
        )
        return reply

    async def _generate(self, context: Any, caller: str) -> None:
        self.check_open()
        served: ServedText | None = None
        session, first = Session(0), peer_pb2.GenerateRequest()
        try:
            while (data := await self._next(context)) is not None:
                request = parse(peer_pb2.GenerateRequest, data)
                self.metrics.received.inc(len(data))
                if served is None:
                    session.expert, first = request.expert, request
                    fit = self._served_for(request)
                    fit.open(session, caller if self.named else "")
                    served = fit
                elif request.request_id != first.request_id:
                    raise WireError("mixed-up", "a stream is about one text")
                await self._go_on(served, session, request, context, caller)
        finally:
            if served is not None:
                served.close(session)

    async def _next(self, context: Any) -> bytes | None:
        try:
            data = await asyncio.wait_for(context.read(), _IDLE_SECONDS)
        except TimeoutError:
            raise RefusedError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "idle", "nothing followed for too long"
            ) from None
        return None if data is grpc.aio.EOF else bytes(data)

    async def _go_on(
        self,
        served: ServedText,
        session: Session,
        request: peer_pb2.GenerateRequest,
        context: Any,
        caller: str,
    ) -> None:
        """Read what follows, then draw as many tokens as are wanted."""
        started = time.perf_counter()
        experts = served.experts
        rows: Any = (
            self._tokens(request, served) if request.tokens else self._hidden(request, served)
        )
        how = Writing(request.temperature, request.seed)
        if request.position != session.seen:
            raise WireError(
                "position", f"token {request.position} follows {session.seen} that were read"
            )
        if session.seen + len(rows) + request.count > experts.context:
            raise WireError(
                "context",
                f"{session.seen + len(rows)} tokens and {request.count} to follow; allowed: "
                f"{experts.context} in all",
            )
        served.keep(session, session.seen + len(rows) + request.count)
        if request.count > 1 and not request.tokens:
            raise WireError("count", "hidden states are asked for token by token")
        if not 0 <= how.temperature < np.inf:
            raise WireError("temperature", f"temperature {how.temperature}; allowed: 0 or more")
        for left in range(max(request.count, 1), 0, -1):
            step = TextStep(session, rows, how if request.count else None)
            with self.held(caller, len(rows)):
                drawn = await served.go_on(step)
            if drawn is None:
                return
            reply = peer_pb2.GenerateReply(
                request_id=request.request_id,
                expert_version=served.bundle.version_of(session.expert),
                position=session.seen,
                token=drawn.token,
                log_probability=drawn.log_probability,
            )
            await context.write(reply)
            self.answered += 1
            self.metrics.answered(
                caller,
                rows=len(rows),
                size=reply.ByteSize(),
                seconds=time.perf_counter() - started,
            )
            started = time.perf_counter()
            if left == 1 or (request.HasField("end") and drawn.token == request.end):
                return
            rows = np.array([drawn.token])

    def _served_for(self, request: peer_pb2.ScoreRequest | peer_pb2.GenerateRequest) -> ServedText:
        if len(request.request_id) > MAX_ID:
            raise WireError("request-id", f"a request id of {len(request.request_id)} characters")
        return self.version_for(
            lambda one: one.fits(request),
            request.extractor_version,
            request.expert_version or f"of device {request.expert}",
        )

    def _tokens(
        self, request: peer_pb2.ScoreRequest | peer_pb2.GenerateRequest, served: ServedText
    ) -> Ints:
        """The tokens of a question, where they are allowed."""
        if not served.bundle.tokens_may_leave:
            raise RefusedError(
                _DENIED,
                "tokens",
                "tokens are the text itself, and the operator does not allow them: query.send = "
                "hidden",
            )
        if request.HasField("hidden"):
            raise WireError("shape", "a question has hidden states or tokens, not both")
        return decode_tokens(
            request.tokens, most=self.max_rows, vocab_size=served.experts.num_tokens
        )

    def _hidden(
        self, request: peer_pb2.ScoreRequest | peer_pb2.GenerateRequest, served: ServedText
    ) -> Floats:
        return decode_tensor(
            request.hidden, max_rows=self.max_rows, columns=served.bundle.latent_dim
        )
