"""What every inference engine can do: score tokens, generate, say what it holds in memory, close.

Token ids go in and come out; text and tokenizers stay outside. An engine is opened on one sealed artifact with one
`EngineSettings` and is never reconfigured: another setting is another engine.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from configs.engine import EngineSettings


@dataclass(frozen=True)
class ScoreRequest:
    """One sequence to score: the probability of `targets` after `context`.

    `context` has at least one token (callers put the BOS or EOS token where a text starts); `targets` has at least one.
    """

    context: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class TokenScores:
    """What the model said of each target token, in order.

    Attributes:
        logprobs: natural-log probability of each target, float32, shape (T,).
        is_argmax: whether the target was the most probable token, bool, shape (T,).
        logits: raw next-token logits at each target position, float32, shape (T, V); only on request.
    """

    logprobs: NDArray[np.float32]
    is_argmax: NDArray[np.bool_]
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One greedy completion: at most `max_new_tokens` after `prompt`; EOS stops it unless `ignore_eos`."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    ignore_eos: bool = False


@dataclass(frozen=True)
class Generation:
    """The new tokens and when each was out, in seconds after the whole call began.

    `token_times_s[0]` is the time to first token when all requests arrive at once.
    """

    tokens: tuple[int, ...]
    token_times_s: tuple[float, ...]


@dataclass(frozen=True)
class EngineMemory:
    """What the engine holds: weight bytes as they lie in the artifact, and the KV cache it has reserved (0 where it grows)."""

    weights_bytes: int
    kv_cache_bytes: int


class Engine(Protocol):
    """An open engine. Use as a context manager, or call `close`."""

    settings: EngineSettings
    vocab_size: int

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """Yield one `TokenScores` a request, in the order of the requests.

        Consecutive requests of one context may share its computation: what comes back is the same, but for
        the rounding that a batch brings.

        Raises:
            EngineError: the engine failed, or returned a non-finite number or the wrong number of scores.
        """
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Complete all requests, submitted together; batching is the engine's, under `settings.scheduler`.

        Raises:
            EngineError: the engine failed.
        """
        ...

    def memory(self) -> EngineMemory:
        """What the engine holds now."""
        ...

    def close(self) -> None:
        """Release the model; safe to call twice."""
        ...

    def __enter__(self) -> Self:
        """The engine itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close it."""
        ...


class EngineError(RuntimeError):
    """An engine failed or broke its contract: the verdict is ERROR, never FAIL."""


class EngineUnavailable(EngineError):
    """The engine or the setting cannot work on this machine; the message says what is missing and the way out."""
