"""From a checked body to what the engine is asked, within the limits."""

import secrets

from configs.serve import ServeLimits
from tasks.endpoint.api_error import ApiError
from tasks.endpoint.engine_process import Opened
from tasks.endpoint.openai_api import ChatRequest, CompletionRequest
from tasks.endpoint.prompt_text import PromptText
from tasks.engines.protocol import GenerationRequest
from tasks.engines.streaming import Sampling, StreamRequest

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for plain completions


def stream_request(
    body: CompletionRequest | ChatRequest, text: PromptText, limits: ServeLimits, engine: Opened
) -> StreamRequest:
    """Tokenize the prompt and check it against the limits.

    Raises:
        ApiError: 400, the prompt or the completion is too long, or the engine does not draw.
    """
    temperature = body.temperature or 0.0
    if temperature > 0 and not engine.samples:
        raise ApiError(
            400,
            f"temperature: {temperature}: this engine takes the most probable token; ask for temperature 0, or leave it out",
            param="temperature",
        )
    chat = isinstance(body, ChatRequest)
    prompt = text.encode_chat(body.messages) if isinstance(body, ChatRequest) else text.encode(body.prompt)
    field = "messages" if chat else "prompt"
    if len(prompt) > limits.prompt_tokens:
        raise _too_long(
            f"{field}: {len(prompt)} tokens, limits.prompt_tokens is {limits.prompt_tokens}", field
        )
    room = engine.sequence_tokens - len(prompt)
    if room < 1:
        raise _too_long(f"{field}: {len(prompt)} tokens leave no room in {engine.sequence_tokens}", field)
    asked = (body.max_completion_tokens if isinstance(body, ChatRequest) else None) or body.max_tokens
    if asked is not None and asked > limits.new_tokens:
        raise ApiError(
            400,
            f"max_tokens: {asked}; limits.new_tokens is {limits.new_tokens}: ask for fewer",
            param="max_tokens",
        )
    if asked is not None and asked > room:
        raise _too_long(
            f"max_tokens: {asked} after {len(prompt)} prompt tokens are more than {engine.sequence_tokens} together",
            "max_tokens",
        )
    most = asked or min(limits.new_tokens if chat else COMPLETION_TOKENS, limits.new_tokens, room)
    # Without a seed of its own, OpenVINO draws every request alike.
    seed = secrets.randbits(31) if body.seed is None else body.seed % 2**31
    return StreamRequest(
        GenerationRequest(prompt, most, ignore_eos=body.ignore_eos),
        Sampling(temperature, body.top_p if body.top_p is not None else 1.0, seed),
    )


def _too_long(what: str, field: str) -> ApiError:
    return ApiError(400, f"{what}; shorten it", param=field, code="context_length_exceeded")
