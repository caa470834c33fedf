"""A configured load as requests with arrival times: cut from token ids of real text, drawn by seed.

Arrivals and lengths depend on the seed alone, so that every run and every candidate meets the same ones, at any scale. The text
of the prompts depends on the run too: a prefix cache would otherwise find in the second run what the first one left there. Only
shared prefixes stay the same from run to run, as a system prompt does. Every request ignores the end of sequence: two
candidates that say different things still make the same number of tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load_profile import ClosedLoad, LoadSettings, PoissonLoad, TraceLoad
from tasks.engines.protocol import GenerationRequest
from tasks.serving.trace import TraceError, read_trace
from tasks.store.digest import sha256_file


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival.

    Attributes:
        requests: what is asked.
        arrivals_s: when each arrives, seconds after the start; None in a closed loop, where the next request
            comes when an answer is complete.
        clients: requests under way at most in a closed loop; 0 in an open one, where nothing holds them back.
    """

    requests: tuple[GenerationRequest, ...]
    arrivals_s: tuple[float, ...] | None
    clients: int = 0

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest request at its end."""
        return max(len(each.prompt) + each.max_new_tokens for each in self.requests)

    @property
    def offered_requests_per_s(self) -> float | None:
        """Mean arrivals a second; None in a closed loop."""
        if self.arrivals_s is None or not self.arrivals_s[-1]:
            return None
        return (len(self.arrivals_s) - 1) / self.arrivals_s[-1]


def make_workload(
    load: LoadSettings, text_tokens: Sequence[int], *, scale: float = 1.0, run: int = 0
) -> Workload:
    """Draw one run of a load.

    Args:
        load: the configuration.
        text_tokens: token ids to cut prompts from.
        scale: times the configured load: arrivals so much faster, or so many times the clients, at least 1.
        run: which run: other text, the same arrivals and lengths.

    Raises:
        TraceError: the trace cannot be used, or is too short.
        ValueError: the text is shorter than a prompt.
    """
    lengths, arrivals_s = _lengths(load), _arrivals_s(load)
    longest = max(prompt for prompt, _ in lengths)
    if longest > len(text_tokens):
        raise ValueError(
            f"prompts of {longest} tokens cannot be cut from a text of {len(text_tokens)}; give more text, or lower "
            "load.max_prompt_tokens"
        )
    prompts = [_prompt(load, text_tokens, tokens, index, run) for index, (tokens, _) in enumerate(lengths)]
    return Workload(
        requests=tuple(
            GenerationRequest(prompt, new_tokens, ignore_eos=True)
            for prompt, (_, new_tokens) in zip(prompts, lengths, strict=True)
        ),
        arrivals_s=None if arrivals_s is None else tuple(at_s / scale for at_s in arrivals_s),
        clients=max(1, round(load.concurrency * scale)) if isinstance(load, ClosedLoad) else 0,
    )


def check_load(load: LoadSettings | None) -> None:
    """Read the trace of a load, so that a bad line is told before anything runs.

    Raises:
        TraceError: it cannot be used, or is too short.
    """
    if isinstance(load, TraceLoad):
        _trace_rows(load)


def load_inputs(load: LoadSettings | None) -> list[object]:
    """What a result measured under a load depends on: the settings and the trace's content."""
    return [load, sha256_file(Path(load.path)) if isinstance(load, TraceLoad) else None]


def _trace_rows(load: TraceLoad) -> list[tuple[float, int, int]]:
    """Arrival in seconds after the first taken row, prompt and new tokens, scaled."""
    rows = read_trace(Path(load.path))
    taken = rows[load.first_row : load.first_row + load.requests]
    if len(taken) < load.requests:
        raise TraceError(
            f"{load.path}: holds {len(rows)} requests; load.first_row {load.first_row} + load.requests {load.requests} "
            "are more: lower one of them"
        )
    return [
        (
            (row.at_s - taken[0].at_s) / load.time_scale,
            _scaled(row.context_tokens, load.length_scale, load.max_prompt_tokens),
            _scaled(row.generated_tokens, load.length_scale, load.max_new_tokens),
        )
        for row in taken
    ]


def _scaled(tokens: int, scale: float, most: int) -> int:
    return min(max(1, round(tokens * scale)), most)


def _lengths(load: LoadSettings) -> list[tuple[int, int]]:
    """Prompt and new tokens of each request."""
    if isinstance(load, TraceLoad):
        return [(prompt, new) for _, prompt, new in _trace_rows(load)]
    draws = random.Random(f"lengths {load.seed}")
    return [
        (
            draws.randint(load.min_prompt_tokens, load.max_prompt_tokens),
            draws.randint(load.min_new_tokens, load.max_new_tokens),
        )
        for _ in range(load.requests)
    ]


def _arrivals_s(load: LoadSettings) -> list[float] | None:
    """Arrival of each request; the first comes at 0."""
    match load:
        case TraceLoad():
            return [at_s for at_s, _, _ in _trace_rows(load)]
        case PoissonLoad():
            gaps = random.Random(f"arrivals {load.seed}")
            arrivals = [0.0]
            while len(arrivals) < load.requests:
                arrivals.append(arrivals[-1] + gaps.expovariate(load.requests_per_s))
            return arrivals
        case ClosedLoad():
            return None


def _prompt(
    load: LoadSettings, text_tokens: Sequence[int], tokens: int, index: int, run: int
) -> tuple[int, ...]:
    """A piece of the text; behind a shared prefix where the request drew one and is longer."""
    shared = load.shared_prefix
    draws = random.Random(f"prompt {load.seed} {index}")
    shares, which = draws.random() < shared.rate, draws.randrange(shared.count)
    prefix: tuple[int, ...] = ()
    if shares and tokens > shared.tokens:
        prefix = _piece(text_tokens, shared.tokens, f"prefix {load.seed} {which}")
    return prefix + _piece(text_tokens, tokens - len(prefix), f"text {load.seed} {index} {run}")


def _piece(text_tokens: Sequence[int], tokens: int, seed: str) -> tuple[int, ...]:
    start = random.Random(seed).randint(0, len(text_tokens) - tokens)
    return tuple(text_tokens[start : start + tokens])
