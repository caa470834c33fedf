"""Cache memory under three allocation policies, against figures by hand."""

import pytest

from tasks.batching.paging import contiguous, padded, paged
from tasks.engines.protocol import GenerationRequest

# 10 + 30, 10 + 6, 10 + 90 tokens: 156 in all
REQUESTS = [GenerationRequest(tuple(range(10)), new_tokens) for new_tokens in (30, 6, 90)]


def test_figures_by_hand():
    whole = contiguous(REQUESTS, token_bytes=100, reserve_tokens=256)
    assert (whole.used_bytes, whole.reserved_bytes) == (15_600, 76_800)
    assert whole.wasted_fraction == pytest.approx(1 - 156 / 768)
    rows = padded(REQUESTS, token_bytes=100, slots=2)  # (40, 16) takes 80 tokens, (100,) takes 100
    assert (rows.used_bytes, rows.reserved_bytes, rows.wasted_fraction) == (10_000, 10_000, 0)
    assert padded(REQUESTS, token_bytes=100, slots=3).reserved_bytes == 30_000
    blocks = paged(REQUESTS, token_bytes=100, block_tokens=32)  # 2 + 1 + 4 blocks
    assert (blocks.used_bytes, blocks.reserved_bytes) == (15_600, 22_400)


def test_paging_wastes_less_than_a_block_a_request():
    for block in (1, 8, 16, 32):
        allocation = paged(REQUESTS, token_bytes=100, block_tokens=block)
        assert allocation.reserved_bytes - allocation.used_bytes < len(REQUESTS) * block * 100
    assert paged(REQUESTS, token_bytes=100, block_tokens=1).wasted_fraction == 0


def test_a_request_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="100 tokens does not fit reserve_tokens 64"):
        contiguous(REQUESTS, token_bytes=100, reserve_tokens=64)
    with pytest.raises(ValueError, match="no requests"):
        paged([], token_bytes=100, block_tokens=16)
