"""Calibration text as what NNCF feeds to an exported graph."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError

CALIBRATION_TOKENS = 256  # of each text, at most
_MIN_TOKENS = 2  # of a text: one token alone attends to nothing
_DAMAGED_FRACTION = 0.01  # of a text: more control and replacement characters than this are no prose


def calibration_inputs(folder: Path, texts: Sequence[str], weights: WeightSettings) -> list[dict[str, Any]]:
    """One pass over each of the first `calibration_samples` texts from an empty cache, shape (1, tokens).

    Texts keep their own lengths: nothing is padded, and a text of less than two tokens is passed over.

    Args:
        folder: of the IR, with its tokenizer.
        texts: the calibration text, a sample each.
        weights: says how many samples are asked for.

    Raises:
        CompressionError: there are fewer usable texts than that, or a text is damaged.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs: list[dict[str, Any]] = []
    for ids in _token_ids(tokenizer, texts):
        if len(inputs) == weights.calibration_samples:
            break
        inputs.append(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "position_ids": np.arange(ids.shape[1])[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
    if len(inputs) < weights.calibration_samples:
        raise CompressionError(
            f"calibration_samples is {weights.calibration_samples}; calibration needs text of as many samples and "
            f"{len(inputs)} of the {len(texts)} given have {_MIN_TOKENS} tokens or more; give more text "
            "(quality.text.calibration_sections), or lower calibration_samples"
        )
    return inputs


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    for number, text in enumerate(texts):
        _check_whole(text, number)
        ids = np.array([tokenizer(text)["input_ids"][:CALIBRATION_TOKENS]], np.int64)
        if ids.size >= _MIN_TOKENS:
            yield ids


def _check_whole(text: str, number: int) -> None:
    """A damaged text would calibrate the model on what it will never read."""
    damaged = sum(
        character == "\ufffd"
        or "\ud800" <= character <= "\udfff"
        or (character < " " and not character.isspace())
        for character in text
    )
    lone = any("\ud800" <= character <= "\udfff" for character in text)
    if lone or damaged > _DAMAGED_FRACTION * len(text):
        raise CompressionError(
            f"calibration text {number} has {damaged} control, replacement or half characters in {len(text)}; it must "
            f"be readable Unicode (at most {_DAMAGED_FRACTION:.0%}); read the file in its own encoding, or leave the "
            "text out"
        )
