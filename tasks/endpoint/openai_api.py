"""OpenAI's completions and chat completions, as far as this server answers them.

Everything else is refused with a 400 that names the field: a parameter that is silently ignored gives an answer that
was not asked for. Neutral values (`n: 1`, `presence_penalty: 0`, ...) are accepted, because clients send them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]
Zero = Annotated[float, Field(ge=0, le=0)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Request):
    """Options of a streamed answer."""

    include_usage: bool = False


class SharedFields(_Request):
    """What both requests have.

    Attributes:
        temperature: 0 when it is left out, unlike OpenAI's 1: greedy is what the quality gate judged.
        ignore_eos: vLLM's extension: go on after the token that ends a text, for load tests.
    """

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    n: Literal[1] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(SharedFields):
    """Body of POST /v1/completions: one prompt, as text or as token ids."""

    prompt: str | list[int] | Annotated[list[str | list[int]], Field(min_length=1, max_length=1)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None


class TextPart(_Request):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Request):
    """One turn. The fields that must be null are those of an answer that a client sends back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        """Its parts as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(_Request):
    """Only plain text: no grammar constrains what is drawn."""

    type: Literal["text"]


class ChatRequest(SharedFields):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    response_format: ResponseFormat | None = None
    tools: None = None
    tool_choice: Literal["none"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None


class Usage(BaseModel):
    """Tokens of one request; the token that ended the text is counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextChoice(BaseModel):
    """A completion, or a piece of one."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Message(BaseModel):
    """The answer of a chat."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """A chat's answer."""

    index: int = 0
    message: Message
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Delta(BaseModel):
    """What a piece adds to a chat's answer; only the first names the role, and the others have no such field."""

    role: Literal["assistant"] | None = Field(None, exclude_if=lambda role: role is None)
    content: str


class DeltaChoice(BaseModel):
    """A piece of a chat's answer."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Answer(BaseModel):
    """Any answer or piece of one; `choices` is empty in the piece that carries only the usage."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice] | list[ChatChoice] | list[DeltaChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """The one model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["keiryo"] = "keiryo"


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
