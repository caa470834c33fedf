"""`make bench PART=int8`: the demo's release against OpenVINO's own int8 export, batched.

Work: the demo model and the demo's request list (32 requests of 16 prompt tokens and 8 to 16 new ones, all at once), other prompts in
every slot and the same for both sides, in ABBA order.

    keiryo              what `keiryo run configs/demo.yaml` released: OpenVINO, int8 asym per channel, u8 cache, activations in
                        groups of 32, the schema's default scheduler
    optimum and genai   `OVModelForCausalLM.from_pretrained(checkpoint, load_in_8bit=True)`, served by
                        `ContinuousBatchingPipeline(folder, SchedulerConfig(), "CPU")`: nothing set

The interval is over pairs of slots.
"""

import os
import tempfile
from pathlib import Path

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

BLOCKS = int(os.environ.get("BLOCKS", "8"))
RELEASE = EngineSettings(engine="openvino", kv_cache="u8", activation_group=32, threads=2)
REQUESTS = RequestSettings(count=32, prompt_tokens=16, min_new_tokens=8, max_new_tokens=16)
OURS, THEIRS = "keiryo", "optimum and genai"


def main() -> None:
    """Measure and write docs/bench/int8.{json,md}."""
    prepare_environment(store_home(), hub=False, threads=2)
    store = Store(store_home())
    source = acquire(DEMO_MODEL, store)
    text = "\n\n".join(section.text for section in split_text(TextSettings(), 0).search)
    tokens = TextTokenizer(source.folder).encode(text)
    ours = build_artifact(store, source, "openvino", WeightSettings(bits=8, symmetric=False), ())
    with tempfile.TemporaryDirectory() as folder:
        theirs = _exported(source.folder, Path(folder))
        with open_engine(ours, RELEASE) as release, DefaultPipeline.open(theirs, RELEASE) as plain:
            engines = {OURS: release, THEIRS: plain}
            for engine in engines.values():
                warm_up(engine, tokens)
            runners = {
                name: lambda slot, engine=engine: throughput(
                    generate(engine, request_list(REQUESTS, tokens, run=slot + 1))
                )
                for name, engine in engines.items()
            }
            speeds = interleave(BLOCKS, runners)
        megabytes = {
            name: (each.folder / "openvino_model.bin").stat().st_size / 1e6
            for name, each in ((OURS, ours), (THEIRS, theirs))
        }
    rates = speeds.tokens_per_s
    pairs = row("", "", "", [a / b for a, b in zip(rates[OURS], rates[THEIRS], strict=True)])
    rows = [row(name, "32 requests at once", "tokens/s", runs) for name, runs in rates.items()]
    rows += [row(name, "weights", "MB", [size]) for name, size in megabytes.items()]
    ratio = {key: float(str(pairs[key])) for key in ("median", "ci_low", "ci_high")}
    print(write("int8", rows, {f"{OURS}_over_{THEIRS}": ratio}).read_text(encoding="utf-8"))


def _exported(checkpoint: Path, out: Path) -> Artifact:
    """OpenVINO's default int8 export of a checkpoint."""
    from optimum.intel import OVModelForCausalLM

    OVModelForCausalLM.from_pretrained(checkpoint, export=True, load_in_8bit=True).save_pretrained(out)
    return Artifact(digest="0" * 64, folder=out, manifest=Manifest(kind="openvino", files=()))


if __name__ == "__main__":
    main()
