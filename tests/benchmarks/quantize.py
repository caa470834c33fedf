"""`make bench PART=quantize`: what making a weight format costs, beside the library called by hand.

Work: the demo model, 32 sections of the calibration text where a method reads text. OpenVINO formats start from the same f32 export
and end with the same saved graph; by hand means `nncf.compress_weights` (`nncf.quantize`) or optimum-intel's configuration, with the
same settings and text. Our own GPTQ starts from the checkpoint; NNCF's is the row above it. ONNX graphs start from the checkpoint; by
hand means onnxruntime-genai's builder, which leaves the embedding in f32 at 8 bits and has no HQQ. Ours also rounds to nearest to see
that a calibration changed something, reads back what it stored, and copies the tokenizer. Every build runs in a process of its own,
libraries imported before the clock starts; sides take turns. The peak is the growth of resident memory over the build.

METHODS names a few ("nf4,awq"), whose rows replace the earlier ones; RUNS is the number of builds. The files are
written after each method.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.quality import TextSettings
from configs.weights import WeightSettings
from tasks.data.text import split_text
from tasks.profiling.environment import environment
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.store.store import Store
from tests.benchmarks.report_file import FOLDER, row, write
from tests.conftest import DEMO_MODEL

SAMPLES = 32
G64 = WeightSettings(bits=4, group_size=64, calibration_samples=SAMPLES)
G32 = WeightSettings(
    bits=4, group_size=32, symmetric=False
)  # the builder's k_quant fails at an odd number of groups
Build = Callable[[Artifact, WeightSettings, Sequence[str], Path], None]
Figures = dict[str, list[dict[str, float]]]
"""Seconds and MiB of every build of one method, by side."""

# OpenVINO: the parent is the f32 export.
OPENVINO = {
    "int8 asym": WeightSettings(bits=8, symmetric=False),
    "int4": G64,
    "nf4": G64.model_copy(update={"number": "nf4"}),
    "awq": G64.model_copy(update={"calibration": "awq"}),
    "scale_estimation": G64.model_copy(update={"calibration": "scale_estimation"}),
    "awq+scale_estimation": G64.model_copy(update={"calibration": "awq+scale_estimation"}),
    "lora_correction": G64.model_copy(update={"calibration": "lora_correction"}),
    "nncf_gptq": G64.model_copy(update={"calibration": "nncf_gptq"}),
    "gptq": G64.model_copy(update={"calibration": "gptq"}),
    "int8 static": WeightSettings(bits=8, activations="int8_static", calibration_samples=SAMPLES),
}

# ONNX Runtime: the parent is the checkpoint, and a build exports first.
ONNX = {
    "onnx int8": WeightSettings(bits=8, group_size=64),
    "onnx int4": G64,
    "onnx k_quant": G32.model_copy(update={"calibration": "k_quant"}),
    "onnx hqq": G32.model_copy(update={"calibration": "hqq"}),
}
METHODS = OPENVINO | ONNX
NO_PEER = ("gptq", "onnx hqq")  # NNCF's GPTQ is a method of its own above; the builder has no HQQ


def main() -> None:
    """Measure and write docs/bench/quantize.{json,md}."""
    names = [name for name in os.environ.get("METHODS", "").split(",") if name] or list(METHODS)
    runs = int(os.environ.get("RUNS", "3"))
    figures = _known()
    with tempfile.TemporaryDirectory() as folder:
        parents = _parents(Path(folder))
        for name in names:
            parent = parents["onnxruntime" if name in ONNX else "openvino"]
            figures[name] = _measured(name, list(_sides(name)), runs, Path(folder), parent)
            path = _write({each: figures[each] for each in METHODS if each in figures})
    print(path.read_text(encoding="utf-8"))


def _known() -> dict[str, Figures]:
    """What earlier runs on this machine have measured: methods that are named replace theirs."""
    path = FOLDER / "quantize.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return document["figures"] if document.get("machine") == environment() else {}


def _write(figures: Mapping[str, Figures]) -> Path:
    rows, ratios = [], {}
    for name, sides in figures.items():
        for side, found in sides.items():
            rows.append(row(side, name, "s", [each["seconds"] for each in found]))
            rows.append(row(side, f"{name}, peak", "MiB", [each["peak_mib"] for each in found]))
        for side in list(sides)[1:]:
            pairs = zip(sides[side], sides["keiryo"], strict=True)
            values = sorted(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs)
            ratios[f"{side} over keiryo, {name}, seconds (pairs: least to largest)"] = {
                "median": values[len(values) // 2], "ci_low": values[0], "ci_high": values[-1],
            }  # fmt: skip
    return write("quantize", rows, ratios, {"figures": dict(figures)})


def _sides(name: str) -> Mapping[str, Build]:
    sides = ONNX_SIDES if name in ONNX else OPENVINO_SIDES
    return {"keiryo": sides["keiryo"]} if name in NO_PEER else sides


def _parents(folder: Path) -> dict[str, str]:
    """Digests of what the builds start from, in a store of its own."""
    from tasks.compression.build import build_artifact
    from tasks.models.sources import acquire

    store = Store(folder / "store")
    checkpoint = acquire(DEMO_MODEL, store)
    exported = build_artifact(store, checkpoint, "openvino", WeightSettings(), ())
    return {"openvino": exported.digest, "onnxruntime": checkpoint.digest}


def _measured(name: str, sides: list[str], runs: int, folder: Path, parent: str) -> Figures:
    figures: Figures = {side: [] for side in sides}
    for number in range(runs):
        for side in sides if number % 2 == 0 else reversed(sides):
            command = [sys.executable, "-m", "tests.benchmarks.quantize", side, name, str(folder), parent]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[side].append(json.loads(made.stdout.splitlines()[-1]))
    return figures


def _one(side: str, name: str, folder: Path, parent: str) -> dict[str, float]:
    """Build once in this process."""
    _import_libraries()
    build = _sides(name)[side]
    artifact = Store(folder / "store").open(parent)
    texts = [section.text for section in split_text(TextSettings(), 0).calibration][:SAMPLES]
    with tempfile.TemporaryDirectory(dir=folder) as out, MemoryPeak() as peak:
        began_s = time.perf_counter()
        build(artifact, METHODS[name], texts, Path(out))
        seconds = time.perf_counter() - began_s
    return {"seconds": seconds, "peak_mib": peak.growth_bytes / 2**20}


def _import_libraries() -> None:
    import nncf
    import onnxruntime_genai.models as models
    import openvino  # noqa: F401
    import optimum.intel  # noqa: F401

    sys.path.append(str(Path(models.__file__).parent))  # its modules import each other by bare names
    from onnxruntime_genai.models import builder  # noqa: F401

    nncf.set_log_level(40)


def _keiryo(ir: Artifact, weights: WeightSettings, texts: Sequence[str], out: Path) -> None:
    from tasks.compression.grid import load_grids
    from tasks.compression.grids import write_grids_of, write_importance
    from tasks.compression.openvino import compress_openvino

    if weights.calibration != "gptq":
        compress_openvino(ir, weights, texts, out)
        return
    checkpoint = Store(ir.folder.parents[1]).open(ir.manifest.parent or "")
    importance, rounded = out / "importance", out / "grids"
    for folder in (importance, rounded):
        folder.mkdir()
    write_importance(checkpoint, texts, importance)
    write_grids_of(checkpoint, importance, weights, rounded)
    compress_openvino(ir, weights, texts, out, load_grids(rounded))


def _nncf(ir: Artifact, weights: WeightSettings, texts: Sequence[str], out: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(ir.folder / "openvino_model.xml")
    parts = weights.calibration.split("+")
    dataset = nncf.Dataset(_inputs(ir.folder, texts))
    modes = nncf.CompressWeightsMode
    if weights.activations == "int8_static":
        model = nncf.quantize(
            model, dataset, subset_size=len(texts), model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"]),
        )  # fmt: skip
    elif weights.bits == 8:
        model = nncf.compress_weights(model, mode=modes.INT8_SYM if weights.symmetric else modes.INT8_ASYM)
    else:
        read = {"dataset": dataset, "subset_size": len(texts)} if weights.calibration != "none" else {}
        model = nncf.compress_weights(
            model, mode=modes.NF4 if weights.number == "nf4" else modes.INT4_SYM, group_size=weights.group_size,
            ratio=1.0, backup_mode=nncf.BackupMode.INT8_SYM, awq="awq" in parts,
            scale_estimation="scale_estimation" in parts, lora_correction="lora_correction" in parts,
            gptq=weights.calibration == "nncf_gptq", **read,
        )  # fmt: skip
    ov.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)


def _optimum(ir: Artifact, weights: WeightSettings, texts: Sequence[str], out: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVQuantizationConfig, OVWeightQuantizationConfig

    parts = weights.calibration.split("+")
    read: dict[str, Any] = {"dataset": list(texts), "tokenizer": str(ir.folder), "num_samples": len(texts)}
    if weights.activations == "int8_static":
        scope = {"types": ["ScaledDotProductAttention"]}
        config: Any = OVQuantizationConfig(bits=8, ignored_scope=scope, **read)
    else:
        four: dict[str, Any] = {
            "group_size": weights.group_size, "ratio": 1.0, "backup_precision": "int8_sym",
            "dtype": "nf4" if weights.number == "nf4" else "int4", "quant_method": "awq" if "awq" in parts else "default",
            "scale_estimation": "scale_estimation" in parts, "lora_correction": "lora_correction" in parts,
            "gptq": weights.calibration == "nncf_gptq",
        } if weights.bits == 4 else {}  # fmt: skip
        config = OVWeightQuantizationConfig(
            bits=weights.bits,
            sym=weights.symmetric,
            **four,
            **(read if weights.calibration != "none" else {}),
        )
    model = OVModelForCausalLM.from_pretrained(ir.folder, quantization_config=config, compile=False)
    model.save_pretrained(out)


def _inputs(folder: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [np.array([tokenizer(text)["input_ids"]], np.int64) for text in texts]
    return [
        {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None],
         "beam_idx": np.zeros(1, np.int32)}
        for ids in rows
    ]  # fmt: skip


def _keiryo_onnx(checkpoint: Artifact, weights: WeightSettings, texts: Sequence[str], out: Path) -> None:
    from tasks.compression.onnx import build_onnx

    build_onnx(checkpoint, weights, texts, out)


def _builder(checkpoint: Artifact, weights: WeightSettings, texts: Sequence[str], out: Path) -> None:
    """onnxruntime-genai's own weight formats."""
    import contextlib

    from onnxruntime_genai.models import builder

    algorithm = "k_quant" if weights.calibration == "k_quant" else "default"
    where = (
        str(checkpoint.folder), str(checkpoint.folder), str(out), f"int{weights.bits}", "cpu", str(out / ".cache"),
    )  # fmt: skip
    settings = [
        "hf_token=false", "hf_remote=false", f"block_size={weights.group_size}", f"algo_config={algorithm}",
        f"is_symmetric={str(weights.symmetric).lower()}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):
        builder.create_model(*where, **builder.parse_extra_options(*where, settings))


OPENVINO_SIDES: dict[str, Build] = {"keiryo": _keiryo, "nncf by hand": _nncf, "optimum-intel": _optimum}
ONNX_SIDES: dict[str, Build] = {"keiryo": _keiryo_onnx, "onnxruntime-genai's builder": _builder}


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(_one(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
    else:
        main()
