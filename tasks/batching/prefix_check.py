"""Whether a prefix cache changes what is said: every answer must be the same, token by token, with and without it.

The gate scores through paged attention without a prefix cache, so it does not see what a wrong or stale block would do. Prompts
that begin alike are asked one after another, twice: the second time, and from the second prompt on, the cache serves their
beginning. Alone in the engine a request meets no other batch size, so rounding is no excuse and no difference is allowed.
"""

from collections.abc import Sequence

from tasks.engines.protocol import Engine, GenerationRequest
from tasks.serving.requests import prompts
from tasks.store.record import Record

PROMPTS = 6
SHARED_TOKENS, OWN_TOKENS, NEW_TOKENS = 96, 24, 12  # three blocks of 32 are shared


class PrefixCheck(Record):
    """The answers compared.

    Attributes:
        answers: asked of both engines.
        changed: of these, those that differ in any token.
    """

    answers: int
    changed: int


def check_prefix_cache(plain: Engine, cached: Engine, text_tokens: Sequence[int]) -> PrefixCheck:
    """Ask both engines the same.

    Args:
        plain: without a prefix cache.
        cached: the same settings with one.
        text_tokens: token ids to cut prompts from.

    Raises:
        EngineError: an engine failed.
        ValueError: the text is shorter than a prompt.
    """
    (shared,) = prompts(text_tokens, 1, SHARED_TOKENS, "shared prefix")
    own = prompts(text_tokens, PROMPTS, OWN_TOKENS, "own text")
    requests = [GenerationRequest(shared + each, NEW_TOKENS, ignore_eos=True) for each in own] * 2
    said = [[engine.generate([request])[0].tokens for request in requests] for engine in (plain, cached)]
    return PrefixCheck(
        answers=len(requests), changed=sum(a != b for a, b in zip(said[0], said[1], strict=True))
    )
