"""The requests that speed is measured on: prompts cut from token ids of real text, drawn once by seed.

Every request ignores the end-of-sequence token, so that two candidates which say different things still make
the same number of tokens.
"""

import random
from collections.abc import Sequence

from configs.schema import RequestSettings
from tasks.engines.protocol import GenerationRequest


def request_list(
    settings: RequestSettings, text_tokens: Sequence[int], run: int = 0
) -> list[GenerationRequest]:
    """The concurrent requests: prompts of one length, completion lengths uniform between the two limits.

    Args:
        settings: count, lengths and seed.
        text_tokens: token ids of a text, at least as long as one prompt.
        run: every run has other prompts of the same lengths, so that no prefix cache knows them already.

    Raises:
        ValueError: the text is shorter than a prompt.
    """
    lengths = random.Random(f"lengths {settings.seed}")
    seed = f"list {settings.seed} {run}" if run else f"list {settings.seed}"
    return [
        GenerationRequest(
            prompt, lengths.randint(settings.min_new_tokens, settings.max_new_tokens), ignore_eos=True
        )
        for prompt in prompts(text_tokens, settings.count, settings.prompt_tokens, seed)
    ]


def one_stream_requests(
    settings: RequestSettings, text_tokens: Sequence[int], count: int
) -> list[GenerationRequest]:
    """`count` requests of one length, to be served one at a time; each with its own prompt.

    Raises:
        ValueError: the text is shorter than a prompt.
    """
    return [
        GenerationRequest(prompt, settings.one_stream_new_tokens, ignore_eos=True)
        for prompt in prompts(text_tokens, count, settings.prompt_tokens, f"stream {settings.seed}")
    ]


def prompts(text_tokens: Sequence[int], count: int, prompt_tokens: int, seed: str) -> list[tuple[int, ...]]:
    """Cut `count` prompts of `prompt_tokens` tokens at places of the text drawn by `seed`.

    Raises:
        ValueError: the text is shorter than a prompt.
    """
    last_start = len(text_tokens) - prompt_tokens
    if last_start < 0:
        raise ValueError(
            f"prompts of {prompt_tokens} tokens cannot be cut from a text of {len(text_tokens)}; "
            "give more text, or lower requests.prompt_tokens or profile.context_tokens"
        )
    places = random.Random(seed)
    starts = [places.randint(0, last_start) for _ in range(count)]
    return [tuple(text_tokens[start : start + prompt_tokens]) for start in starts]
