"""Calibration text through the f32 graph: its inputs, and how large keys and values become."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_RANGES = "kv_ranges.safetensors"


def calibration_feeds(folder: Path, texts: Sequence[str]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Inputs of the graph in `folder`, one text each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    names = [
        f"past_key_values.{layer}.{kind}"
        for layer in range(decoder["num_hidden_layers"])
        for kind in ("key", "value")
    ]
    for text in texts:
        ids_BT = np.array([tokenizer.encode(text).ids], np.int64)
        yield {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT), **dict.fromkeys(names, empty)}


def measure_cache(graph: Path, texts: Sequence[str], out: Path) -> None:
    """Write how large every channel of keys and values becomes over `texts` into `out`.

    The file holds "<layer>.key" and "<layer>.value", f32 of shape (kv_heads, head_dim). An engine that keeps keys and values in 8
    or 4 bits takes its scales from it; larger values are clipped. A key is cached rotated by its position, which moves
    length between the two channels of a pair: both get the largest length of the pair, so that the range holds at
    positions that the texts are too short for.
    """
    import onnx_ir as ir
    import onnxruntime as ort
    from safetensors.numpy import save_file

    model = ir.load(graph).graph
    attention = next(node for node in model if node.op_type == "GroupQueryAttention")
    interleaved = attention.attributes["rotary_interleaved"].as_int() != 0
    pairs = int(model.initializers["cos_cache"].shape[1])  # type: ignore[index,arg-type]  # (positions, pairs)
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name.startswith("present.")]
    largest: dict[str, NDArray[np.float32]] = {}
    for feeds in calibration_feeds(graph.parent, texts):
        for name, cache_BHTD in zip(names, session.run(names, dict(feeds)), strict=True):
            sizes = np.abs(cache_BHTD)
            if name.endswith(".key"):
                sizes = _pair_lengths(cache_BHTD, pairs, interleaved=interleaved)
            here = sizes.max((0, 2))
            key = name.removeprefix("present.")
            largest[key] = np.maximum(largest.get(key, here), here)
    save_file(largest, out / CACHE_RANGES)


def _pair_lengths(cache_BHTD: NDArray[np.float32], pairs: int, *, interleaved: bool) -> NDArray[np.float32]:
    """The length of the rotated pair that each channel belongs to; its own magnitude where it is not rotated."""
    lengths = np.abs(cache_BHTD)
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    both = np.hypot(cache_BHTD[..., first], cache_BHTD[..., second])
    lengths[..., first] = lengths[..., second] = both
    return lengths
