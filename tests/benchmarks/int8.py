"""`make bench PART=int8`: int8 candidates of the recipes `demo` and `cpu` against OpenVINO's own int8 export, batched.

Work: the demo model and the demo's request list (32 requests of 16 prompt tokens and 8 to 16 new ones, all at once), other prompts in
every slot and the same for all sides, in ABBA order.

    keiryo, openvino        int8 asym per channel, u8 cache, activations in groups of 32, the schema's default scheduler
    keiryo, openvino, g64   the same but int8 sym, and activations in groups of 64
    keiryo, onnxruntime     int8 sym in groups of 32, f32 cache, slots of our own over one session
    optimum and genai       `OVModelForCausalLM.from_pretrained(checkpoint, load_in_8bit=True)`, served by
                            `ContinuousBatchingPipeline(folder, SchedulerConfig(), "CPU")`: nothing set

Which of ours is released depends on the machine. "The faster one" is chosen by the even blocks and compared in the odd ones. Intervals
are over pairs of slots.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from configs.engine import EngineSettings
from configs.quality import TextSettings
from configs.schema import RequestSettings
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.compression.build import build_artifact
from tasks.data.text import split_text
from tasks.engines.open import open_engine
from tasks.models.sources import acquire
from tasks.quality.tokenizer import TextTokenizer
from tasks.serving.interleaved import interleave
from tasks.serving.latency import generate, throughput, warm_up
from tasks.serving.requests import request_list
from tasks.store.artifact import Artifact, Manifest
from tasks.store.store import Store, store_home
from tests.benchmarks.default_pipeline import DefaultPipeline
from tests.benchmarks.report_file import row, write
from tests.conftest import DEMO_MODEL

BLOCKS = int(os.environ.get("BLOCKS", "16"))
REQUESTS = RequestSettings(count=32, prompt_tokens=16, min_new_tokens=8, max_new_tokens=16)
THEIRS = "optimum and genai"
OPENVINO = EngineSettings(engine="openvino", kv_cache="u8", activation_group=32, threads=2)
OURS = {
    "keiryo, openvino": (WeightSettings(bits=8, symmetric=False), OPENVINO),
    "keiryo, openvino, g64": (WeightSettings(bits=8), OPENVINO.model_copy(update={"activation_group": 64})),
    "keiryo, onnxruntime": (
        WeightSettings(bits=8, group_size=32),
        EngineSettings(engine="onnxruntime", threads=2),
    ),
}


def main() -> None:
    """Measure and write docs/bench/int8.{json,md}."""
    if BLOCKS < 2:
        sys.exit("BLOCKS: two at least, one to choose by and one to compare in")
    prepare_environment(store_home(), hub=False, threads=2)
    store = Store(store_home())
    source = acquire(DEMO_MODEL, store)
    text = "\n\n".join(section.text for section in split_text(TextSettings(), 0).search)
    tokens = TextTokenizer(source.folder).encode(text)
    made = {
        name: build_artifact(store, source, engine.engine, weights, ())
        for name, (weights, engine) in OURS.items()
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        theirs = _exported(source.folder, Path(folder))
        engines: dict[str, Any] = {
            name: stack.enter_context(open_engine(made[name], engine)) for name, (_, engine) in OURS.items()
        }
        engines[THEIRS] = stack.enter_context(DefaultPipeline.open(theirs, OPENVINO))
        for engine in engines.values():
            warm_up(engine, tokens)
        runners = {
            name: lambda slot, engine=engine: throughput(
                generate(engine, request_list(REQUESTS, tokens, run=slot + 1))
            )
            for name, engine in engines.items()
        }
        rates = interleave(BLOCKS, runners).tokens_per_s
        megabytes = {name: _weights_bytes(each) / 1e6 for name, each in (made | {THEIRS: theirs}).items()}
    rows = [row(name, "32 requests at once", "tokens/s", runs) for name, runs in rates.items()]
    rows += [row(name, "weights", "MB", [size]) for name, size in megabytes.items()]
    print(write("int8", rows, _ratios(rates)).read_text(encoding="utf-8"))


def _ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    slots = range(2 * BLOCKS)
    choosing = [slot for slot in slots if slot // 2 % 2 == 0]
    faster = max(OURS, key=lambda name: statistics.median(rates[name][slot] for slot in choosing))
    asked = {f"{name} over {THEIRS}": (name, list(slots)) for name in OURS}
    asked[f"the faster one, {faster}, over {THEIRS}, in other slots"] = (
        faster,
        [slot for slot in slots if slot not in choosing],
    )
    found = {}
    for what, (name, of) in asked.items():
        pairs = row("", "", "", [rates[name][slot] / rates[THEIRS][slot] for slot in of])
        found[what] = {key: float(str(pairs[key])) for key in ("median", "ci_low", "ci_high")}
    return found


def _weights_bytes(artifact: Artifact) -> int:
    """The graph's file, and the weights beside it."""
    files = [*artifact.folder.glob("openvino_model.bin"), *artifact.folder.glob("model.onnx*")]
    return sum(file.stat().st_size for file in files)


def _exported(checkpoint: Path, out: Path) -> Artifact:
    """OpenVINO's default int8 export of a checkpoint."""
    from optimum.intel import OVModelForCausalLM

    OVModelForCausalLM.from_pretrained(checkpoint, export=True, load_in_8bit=True).save_pretrained(out)
    return Artifact(digest="0" * 64, folder=out, manifest=Manifest(kind="openvino", files=()))


if __name__ == "__main__":
    main()
