from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXTS, tiny_llama

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.openvino_calibration import CALIBRATION_TOKENS, calibration_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model", layers=1).folder


def _asking(samples: int) -> WeightSettings:
    return WeightSettings(bits=4, group_size=32, calibration="awq", calibration_samples=samples)


def test_texts_keep_their_own_lengths_up_to_the_limit(folder: Path) -> None:
    texts = ["the keys", TEXTS[0], " ".join(TEXTS)]
    lengths = [sample["input_ids"].shape for sample in calibration_inputs(folder, texts, _asking(3))]
    assert 1 < lengths[0][1] < lengths[1][1] < lengths[2][1] == CALIBRATION_TOKENS
    for sample in calibration_inputs(folder, texts, _asking(3)):
        ids, positions = sample["input_ids"], sample["position_ids"]
        assert ids.shape == positions.shape == sample["attention_mask"].shape == (1, ids.shape[1])
        np.testing.assert_array_equal(positions[0], np.arange(ids.shape[1]))


def test_the_first_usable_texts_are_taken(folder: Path) -> None:
    with_empty = ["", TEXTS[0], "", TEXTS[1], TEXTS[2]]
    found = [sample["input_ids"] for sample in calibration_inputs(folder, with_empty, _asking(2))]
    plain = [sample["input_ids"] for sample in calibration_inputs(folder, TEXTS, _asking(2))]
    assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ((), "0 of the 0 given"),
        (("", "", ""), "0 of the 3 given"),
        (TEXTS[:3], "calibration_samples is 4; .* 3 of the 3 given .*or lower calibration_samples"),
    ],
)
def test_too_little_text_is_refused(folder: Path, texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        calibration_inputs(folder, texts, _asking(4))


@pytest.mark.parametrize(
    "damaged",
    ["the keys \ud800 are", "\ufffd\ufffdthe k\ufffdys", "\x00\x01\x7fELF\x02 on the table"],
    ids=["half a character", "wrong encoding", "binary"],
)
def test_damaged_text_is_refused_by_its_number(folder: Path, damaged: str) -> None:
    with pytest.raises(CompressionError, match=r"calibration text 1 has .* must be readable"):
        calibration_inputs(folder, [TEXTS[0], damaged], _asking(2))


def test_one_odd_character_in_a_long_text_is_no_damage(folder: Path) -> None:
    assert len(calibration_inputs(folder, ["\ufffd" + " ".join(TEXTS)], _asking(1))) == 1
