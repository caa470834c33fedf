"""The ledger: rows add up, whatever the speeds; intervals cover the change; broken input is refused."""

import math

import pytest
from fake_rollout import ledger
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.quality.intervals import TooFewClusters
from tasks.release.candidate import Memory
from tasks.release.ledger import SOURCE_QUALITY, LedgerPoint, QualityLevel, Speeds, build_ledger

LEVEL = st.none() | st.floats(-1, 1)
SPEED = st.floats(1e-3, 1e6)


def point(index: int, quality: QualityLevel, mib: float = 1.0) -> LedgerPoint:
    memory = Memory(weights_mib=mib, kv_mib=0, peak_mib=2 * mib, predicted_mib=0)
    return LedgerPoint(
        stage=f"s{index}", candidate=f"c{index}", memory=memory, quality=quality, seconds=index
    )


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[LedgerPoint], Speeds, Speeds]:
    count, slots = draw(st.integers(1, 5)), draw(st.integers(8, 12))
    points = [point(0, SOURCE_QUALITY, draw(SPEED))]
    for index in range(1, count):
        quality = QualityLevel(kl_nats=draw(LEVEL), perplexity_fraction=draw(LEVEL), accuracy=draw(LEVEL))
        points.append(point(index, quality, draw(SPEED)))
    slot = st.lists(SPEED, min_size=slots, max_size=slots).map(tuple)
    decode, throughput = ({p.candidate: draw(slot) for p in points} for _ in range(2))
    return points, Speeds(tokens_per_s=decode), Speeds(tokens_per_s=throughput)


@given(chains())
@settings(max_examples=60, deadline=None)
def test_rows_add_up_to_the_total(drawn: tuple[list[LedgerPoint], Speeds, Speeds]) -> None:
    chain, decode, throughput = drawn
    made = build_ledger(chain, decode, throughput, 0.95)
    total = made.total
    assert len(made.rows) == len(chain) - 1
    for name in ("decode_log_ratio", "throughput_log_ratio"):
        assert math.fsum(getattr(row, name) for row in made.rows) == pytest.approx(
            getattr(total, name), abs=1e-9
        )
    for name in ("weights_mib_delta", "peak_mib_delta", "seconds"):
        rows = math.fsum(getattr(row, name) for row in made.rows)
        assert rows == pytest.approx(getattr(total, name), rel=1e-9, abs=1e-9)
    for name in ("kl_nats", "perplexity_fraction", "accuracy"):
        judged = [value for row in made.rows if (value := getattr(row.quality, name)) is not None]
        if judged:
            assert math.fsum(judged) == pytest.approx(getattr(total.quality, name), abs=1e-9)
        else:
            assert getattr(total.quality, name) is None


def test_the_total_is_release_against_source_in_the_same_slots() -> None:
    before, after = (10.0, 12, 9, 11, 10, 12, 9, 11), (40.0, 48, 36, 44, 40, 48, 36, 44)
    speeds = Speeds(tokens_per_s={"c0": before, "c1": after})
    made = build_ledger([point(0, SOURCE_QUALITY), point(1, QualityLevel())], speeds, speeds, 0.95)
    # The machine drifts by a third between slots, the ratio does not: pairing removes the drift altogether.
    assert made.total.decode_log_ratio == pytest.approx(math.log(4), abs=1e-12)
    assert made.total.decode_ci == pytest.approx((math.log(4), math.log(4)), abs=1e-12)


def test_a_rollout_has_a_row_for_each_kept_stage() -> None:
    made = ledger()
    assert [row.stage for row in made.rows] == ["quantize", "batching"]
    low, high = made.rows[1].throughput_ci
    assert low < math.log(545 / 470) < high
    assert low > 0  # 16 % is seen through 5 % of drift


def test_the_source_alone_is_a_ledger_without_rows() -> None:
    speeds = Speeds(tokens_per_s={"c0": (1.0,) * 8})
    made = build_ledger([point(0, SOURCE_QUALITY)], speeds, speeds, 0.95)
    assert (made.rows, made.total.decode_log_ratio, made.total.decode_ci) == ((), 0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ({"c0": (1.0,) * 8}, "did not measure c1"),
        ({"c0": (1.0,) * 8, "c1": (1.0,) * 9}, "same number of slots"),
        ({"c0": (1.0,) * 8, "c1": (1.0,) * 7 + (0.0,)}, "c1 is not positive"),
    ],
)
def test_broken_speeds_are_refused(speeds: dict[str, tuple[float, ...]], message: str) -> None:
    chain = [point(0, SOURCE_QUALITY), point(1, QualityLevel())]
    with pytest.raises(ValueError, match=message):
        build_ledger(chain, Speeds(tokens_per_s=speeds), Speeds(tokens_per_s=speeds), 0.95)


def test_too_few_blocks_are_refused() -> None:
    speeds = Speeds(tokens_per_s={"c0": (1.0,) * 7, "c1": (2.0,) * 7})
    with pytest.raises(TooFewClusters):
        build_ledger([point(0, SOURCE_QUALITY), point(1, QualityLevel())], speeds, speeds, 0.95)
