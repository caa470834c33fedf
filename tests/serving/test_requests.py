"""The request list: same seed, same list; lengths within limits; prompts are pieces of the text."""

import pytest

from configs.schema import RequestSettings
from tasks.serving.requests import one_stream_requests, request_list

TEXT = [(i * 7919) % 65_537 for i in range(3000)]


def test_list_follows_settings_and_seed():
    settings = RequestSettings(count=50, prompt_tokens=20, min_new_tokens=3, max_new_tokens=11)
    requests = request_list(settings, TEXT)
    assert requests == request_list(settings, TEXT)
    assert requests != request_list(settings.model_copy(update={"seed": 1}), TEXT)
    assert {request.max_new_tokens for request in requests} == set(range(3, 12))
    for request in requests:
        start = TEXT.index(request.prompt[0])
        assert tuple(TEXT[start : start + 20]) == request.prompt
        assert request.ignore_eos


def test_completion_lengths_do_not_depend_on_the_text():
    """Two tokenizers cut other prompts, but the work asked for is the same."""
    settings = RequestSettings(count=10)
    lengths = [[r.max_new_tokens for r in request_list(settings, text)] for text in (TEXT, TEXT[:1500])]
    assert lengths[0] == lengths[1]


def test_streams_have_their_own_prompts():
    prompts = {request.prompt for request in one_stream_requests(RequestSettings(), TEXT, 8)}
    assert len(prompts) == 8


def test_text_shorter_than_a_prompt_is_refused():
    with pytest.raises(ValueError, match="prompts of 16 tokens cannot be cut from a text of 15"):
        request_list(RequestSettings(), TEXT[:15])


def test_another_run_asks_for_the_same_lengths_with_other_prompts():
    settings = RequestSettings(count=10)
    first, second = (request_list(settings, TEXT, run=run) for run in (0, 1))
    assert [r.max_new_tokens for r in first] == [r.max_new_tokens for r in second]
    assert not {r.prompt for r in first} & {r.prompt for r in second}
