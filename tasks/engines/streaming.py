"""The streaming side of an engine: requests come and go while others run, and tokens come out step by step.

`Engine.generate` takes a list and returns when all of it is done, which is what a measurement needs. A server
needs the same continuous batching one step at a time. Everything here belongs to one thread: who calls `step` also
calls `submit` and `cancel`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from configs.engine import EngineSettings
from tasks.engines.protocol import GenerationRequest

End = Literal["stop", "length", "rejected"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most probable token, which is what the quality gate judged.
        top_p: the smallest set of tokens whose probabilities add up to it is drawn from.
        seed: of this request's draws alone.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class StreamRequest:
    """One completion, how it is drawn, and the adapter it asks for (None: the base weights)."""

    generation: GenerationRequest
    sampling: Sampling = Sampling()
    adapter: str | None = None


@dataclass(frozen=True)
class Progress:
    """What one step did for one request.

    Attributes:
        request_id: whose it is.
        tokens: the new tokens, usually one; the token that ends the text is among them.
        end: "stop" after such a token, "length" after the last one asked for, "rejected" where the engine gave
            the request up because its KV cache does not hold it; None while it runs.
    """

    request_id: int
    tokens: tuple[int, ...]
    end: End | None = None


class StreamingEngine(Protocol):
    """An open engine that a server steps.

    Attributes:
        settings: the engine configuration.
        samples: whether a temperature above 0 can be asked for.
        sequence_tokens: the longest prompt with its completion that the KV cache holds.
        slots: requests decoded together, at most.
    """

    settings: EngineSettings
    samples: bool
    sequence_tokens: int
    slots: int

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        ...

    def submit(self, request_id: int, request: StreamRequest) -> None:
        """Queue a request; ids are never used twice."""
        ...

    def cancel(self, request_id: int) -> None:
        """Free what a request holds; no progress of it follows. An id that has ended is ignored."""
        ...

    def step(self) -> list[Progress]:
        """Advance everything that runs by about one token.

        Raises:
            EngineError: the engine failed; nothing that runs can be finished.
        """
        ...

    def close(self) -> None:
        """Release the model; safe to call twice."""
        ...
