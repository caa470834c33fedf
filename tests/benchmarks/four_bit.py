"""`make bench PART=four_bit`: what 4-bit formats lose on WikiText-2, each through the engine that serves it.

Work: the demo model; 40 windows of 512 tokens of the test documents beside the project, which no format has seen. Every format is built
from the same sections of C4 and scored by OpenVINO with f32 arithmetic and cache, window by window in turn. Divergence is against
the source at full precision on the same engine. The source comes from a GGUF of 4 bits (Q4_1), whose grid the last row keeps; the
others round it like any other. The interval is over windows. Nothing here is a timing.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.engine import EngineSettings
from configs.quality import Margins, QualitySettings, TextSettings
from configs.schema import Config
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.engines.protocol import Engine, ScoreRequest
from tasks.quality.intervals import text_limits
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.measuring import make_candidate, open_candidate, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tests.benchmarks.report_file import write
from tests.conftest import DEMO_MODEL

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WINDOWS, WINDOW_TOKENS = int(os.environ.get("WINDOWS", "40")), 512
SECTIONS = int(os.environ.get("SECTIONS", "64"))
ENGINE = EngineSettings(engine="openvino", compute="f32", kv_cache="f32", threads=2)
_GPTQ = {"bits": 4, "group_size": 64, "calibration": "gptq", "calibration_samples": SECTIONS}
_WITHIN = _GPTQ | {"symmetric": False, "max_bytes_fraction": 0.18}
_NNCF = {"bits": 4, "symmetric": False, "group_size": 64, "calibration": "awq+scale_estimation"}
FORMATS = {
    "round to nearest, sym g64": WeightSettings(bits=4, group_size=64),
    "awq+scale_estimation, asym g64, 20 % int8": WeightSettings.model_validate(
        _NNCF | {"int8_ratio": 0.2, "calibration_samples": SECTIONS}
    ),
    "gptq, sym g64": WeightSettings.model_validate(_GPTQ),
    "gptq, asym g64, within 18 %": WeightSettings.model_validate(_WITHIN),
    "gptq, asym g32, within 18 %": WeightSettings.model_validate(_WITHIN | {"group_size": 32}),
    "gptq with output feedback, asym g32, within 18 %": WeightSettings.model_validate(
        _WITHIN | {"group_size": 32, "output_feedback": True}
    ),
    "the source's own grid, asym g32": WeightSettings(
        bits=4, symmetric=False, group_size=32, calibration="source_grid"
    ),
}


def main() -> None:
    """Measure and write docs/bench/four_bit.{json,md}."""
    if not DATA.is_dir():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KEIRYO_HOME"] = folder
        prepare_environment(Path(folder), hub=False, threads=ENGINE.threads)
        text = TextSettings(
            source=str(DATA / "calibration" / "c4_300docs.jsonl"),
            section_characters=2000,
            calibration_sections=SECTIONS,
            gate_sections=60,
        )
        quality = QualitySettings(text=text, margins=Margins(accuracy=None))
        workspace = make_workspace(
            Config(name="four-bit", model=DEMO_MODEL, threads=2, quality=quality, behaviour=None)
        )
        write("four_bit", list(_rows(workspace)), {})
    print((Path("docs") / "bench" / "four_bit.md").read_text(encoding="utf-8"))


def _rows(workspace: Workspace) -> Iterator[dict[str, object]]:
    built = {
        name: make_candidate(workspace, workspace.source, ENGINE, weights)
        for name, weights in FORMATS.items()
    }
    nats = window_nats(workspace, built)
    f32_bytes = 4 * workspace.architecture.parameters
    for name, candidate in built.items():
        stored = (workspace.store.open(candidate.artifact).folder / "openvino_model.bin").stat().st_size
        yield nats_row(f"{name} ({stored / 1e6:.1f} MB, {stored / f32_bytes:.3f} of f32)", nats[name])


def window_nats(workspace: Workspace, built: Mapping[str, Candidate]) -> dict[str, list[float]]:
    """Divergence of each artifact from the source, window by window, all through OpenVINO in f32."""
    nats: dict[str, list[float]] = {name: [] for name in built}
    with ExitStack() as stack:
        reference = stack.enter_context(open_candidate(workspace, source_candidate(workspace, ENGINE)))
        engines = {name: stack.enter_context(open_candidate(workspace, each)) for name, each in built.items()}
        for window in windows(workspace.source.folder):
            expected = logprobs(reference, window)
            for name, engine in engines.items():
                nats[name].append(float(divergence(expected, logprobs(engine, window)).mean()))
    return nats


def nats_row(name: str, nats: Sequence[float]) -> dict[str, object]:
    """A row of the table: the mean over windows, with its interval."""
    values = np.array(nats)
    low, high = text_limits(values, np.ones_like(values), 0.025, skewed=True)
    return {
        "name": name,
        "work": f"KL to the source, {len(nats)} windows of {WINDOW_TOKENS}",
        "unit": "nats",
        "median": float(values.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
        "runs": list(nats),
    }


def windows(folder: Path) -> list[tuple[int, ...]]:
    """The first tokens of the test documents, in windows; `folder` holds the tokenizer."""
    tokenizer = TextTokenizer(folder)
    ids: list[int] = []
    with (DATA / "wikitext2" / "test_docs.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            ids += tokenizer.encode(json.loads(line)["page"], add_special_tokens=False)
    firsts = range(0, WINDOWS * WINDOW_TOKENS, WINDOW_TOKENS)
    return [tuple(ids[first : first + WINDOW_TOKENS]) for first in firsts]


def logprobs(engine: Engine, window: tuple[int, ...]) -> NDArray[np.float64]:
    """Log-probabilities of every next token, shape (T - 1, V)."""
    (scores,) = engine.score([ScoreRequest(window[:1], window[1:])], with_logits=True)
    if scores.logits is None:
        raise ValueError("the engine gave no logits")
    logits = scores.logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits


def divergence(expected: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL of every position, nats."""
    nats: NDArray[np.float64] = (np.exp(expected) * (expected - found)).sum(-1)
    return nats


if __name__ == "__main__":
    main()
