"""`make bench PART=serve`: goodput at a fixed SLO on a slice of the Azure trace, over a sweep of loads.

Work: the demo model; arrivals and lengths of the Azure conversation trace of 2023, lengths an eighth (mean prompt about 100 tokens,
mean answer about 12), open loop, prompts cut from the calibration text. The trace is sped up to this machine: a load of 100 %
arrives as fast as OpenVINO GenAI with its default settings answers when everything is there at once. The SLO is a first token
within 1,000 ms of the arrival and tokens 50 ms apart on average; 100 ms, tried first with ten requests, was met by both OpenVINO
sides at every load. The same is measured a second time with system prompts: four fifths of the prompts begin with one of four texts
of 64 tokens (512 before scaling), which the search may cache.

    keiryo                      int8 on OpenVINO; the scheduler is what the batching stage's search finds here, on other text
    openvino genai, defaults    the same artifact, `ContinuousBatchingPipeline(folder, SchedulerConfig(), "CPU")`: nothing set
    vllm, int8                  vLLM's CPU build, weights and activations int8 (its fastest format here), compiled, the scheduler that
                                its server starts with; where it is installed (`make vllm`)
    transformers, static batches  padded batches of 16 that end together, in the type that this machine multiplies faster; served once,
                                at the lowest load, for its slowness
    transformers, continuous    its own continuous batching over a paged cache, the same type and number of sequences; once a load

Sides take turns inside every load. Ratios are over the paired runs of a load. llama.cpp is not measured; what is there is printed.

ROWS is the number of requests of a run, REPEATS that of runs a load, SCALES the loads.
"""

import importlib.util
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import openvino_genai as genai
from pydantic import TypeAdapter
from scipy import stats

from configs.engine import EngineSettings, SchedulerSettings
from configs.load_profile import LoadSettings, SharedPrefixSettings, SloSettings
from configs.quality import Margins, QualitySettings
from configs.schema import BatchingSettings, Config
from configs.tuning import SchedulerGrid, TuningSettings
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.batching.contest import Contest
from tasks.batching.halving import search
from tasks.batching.tune import scheduler_options
from tasks.engines.arithmetic import multiply_rates
from tasks.engines.protocol import EngineUnavailable
from tasks.engines.streaming import StreamingEngine
from tasks.engines.streaming_openvino import StreamingOpenVino
from tasks.engines.transformers_engine import TransformersEngine
from tasks.engines.vllm_environment import vllm_python
from tasks.release.candidate import Candidate
from tasks.release.measuring import make_candidate, open_served, prompt_tokens, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tasks.serving.load_driver import LoadDriver, LoadRun
from tasks.serving.load_measures import attainment, good_requests, summarize_runs
from tasks.serving.workload import make_workload
from tests.benchmarks.default_pipeline import DefaultPipeline
from tests.benchmarks.paged_batches import PagedBatches
from tests.benchmarks.report_file import FOLDER, row, write
from tests.benchmarks.static_batches import StaticBatches
from tests.conftest import DEMO_MODEL

TRACE = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces" / "azure2023_conv.csv"
ROWS, REPEATS = int(os.environ.get("ROWS", "60")), int(os.environ.get("REPEATS", "3"))
SCALES = tuple(float(scale) for scale in os.environ.get("SCALES", "0.6,0.8,1.0,1.3").split(","))
RELEASE, DEFAULTS = "keiryo", "openvino genai, defaults"
STATIC, PAGED = "transformers, static batches", "transformers, continuous batching"
ONCE = {STATIC: SCALES[:1], PAGED: SCALES}  # loads of those that are served once, for their slowness
VLLM = "vllm, int8"
SLO = SloSettings(ttft_ms=1000, itl_ms=50)
TUNED_LOAD_RUNS = 1000  # runs of the sweep have lower numbers: other text
GRIDS = {
    "own prompts": SchedulerGrid(
        max_num_seqs=(8, 32), max_num_batched_tokens=(32, 64, 128, 256), cache_mib=(256,)
    ),
    "system prompts": SchedulerGrid(
        max_num_seqs=(32,),
        max_num_batched_tokens=(32, 64, 128, 256),
        cache_mib=(256,),
        prefix_caching=(False, True),
    ),
}
SYSTEM_PROMPTS = SharedPrefixSettings(rate=0.8, tokens=64, count=4)
TUNING = TuningSettings(full_pairs=8)
INT8 = EngineSettings(engine="openvino", compute="bf16", kv_cache="u8", activation_group=32, threads=2)
VLLM_ENGINE = EngineSettings(
    engine="vllm",
    compute="bf16",
    kv_cache="bf16",
    threads=2,
    scheduler=SchedulerSettings(max_num_seqs=128, max_num_batched_tokens=2048),
)
VLLM_WEIGHTS = WeightSettings(bits=8, activations="int8_dynamic", embedding_bits=16)
Runs = dict[str, dict[float, list[LoadRun]]]


def main() -> None:
    """Measure and write docs/bench/serve.{json,md}."""
    if not TRACE.is_file():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs its trace")
    began_s = time.monotonic()
    measured: dict[str, Runs] = {}
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(os.environ.get("KEIRYO_HOME", folder))
        os.environ["KEIRYO_HOME"] = str(home)
        prepare_environment(home, hub=False, threads=2)
        for name, grid in GRIDS.items():
            print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
            workspace = make_workspace(config_of(name))
            int8 = make_candidate(workspace, workspace.source, INT8, WeightSettings(bits=8, symmetric=False))
            workspace, capacity = at_capacity(workspace, int8)
            tuned, notes = _tuned(workspace, int8, grid)
            said += [f"{name}: {note}" for note in (f"100 % is {capacity:.2f} requests/s", *notes)]
            measured[name] = _sweep(workspace, tuned)
    rows = [row for name, runs in measured.items() for row in _rows(name, runs)]
    ratios = {
        f"{key}, {name}": found for name, runs in measured.items() for key, found in _ratios(runs).items()
    }
    path = write("serve", rows, ratios)
    said += [*_peers(), f"whole run: {time.monotonic() - began_s:.0f} s"]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(f"- {line}" for line in said) + "\n\n![goodput](serve.svg)\n")
    (FOLDER / "serve.svg").write_text(_drawing(measured), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def _transformers() -> EngineSettings:
    rates = multiply_rates()
    compute: Literal["f32", "bf16"] = "bf16" if rates.bf16_gflops > rates.f32_gflops else "f32"
    scheduler = SchedulerSettings(max_num_seqs=16)
    return EngineSettings(
        engine="transformers", compute=compute, kv_cache=compute, threads=2, scheduler=scheduler
    )


def config_of(name: str) -> Config:
    load = TypeAdapter(LoadSettings).validate_python(
        {"kind": "trace", "path": str(TRACE), "requests": ROWS, "length_scale": 0.125, "max_prompt_tokens": 320,
         "max_new_tokens": 40, "slo": SLO, "repeats": REPEATS}
    )  # fmt: skip
    if name == "system prompts":
        load = load.model_copy(update={"shared_prefix": SYSTEM_PROMPTS})
    quality = QualitySettings(margins=Margins(accuracy=None))
    return Config(name="serve", model=DEMO_MODEL, threads=2, quality=quality, behaviour=None, load=load)


def at_capacity(workspace: Workspace, int8: Candidate) -> tuple[Workspace, float]:
    """The load sped up to what the default settings answer when everything arrives at once, requests a second."""
    load, tokens = workspace.config.load, prompt_tokens(workspace)
    assert load is not None
    workload = make_workload(load, tokens)
    with closing(_defaults(workspace, int8, workload.longest_tokens)) as engine:
        driver = LoadDriver(engine)
        _warm(driver, load, tokens)
        run = driver.run(make_workload(load, tokens, scale=1e6, run=998))
    capacity = len(run.requests) / run.seconds
    assert workload.offered_requests_per_s is not None
    faster = load.model_copy(update={"time_scale": capacity / workload.offered_requests_per_s})
    return replace(workspace, config=workspace.config.model_copy(update={"load": faster})), capacity


def _defaults(workspace: Workspace, int8: Candidate, longest: int) -> StreamingOpenVino:
    """OpenVINO GenAI with nothing set, behind the same protocol."""
    scheduler = SchedulerSettings(max_num_seqs=genai.SchedulerConfig().max_num_seqs)
    settings = int8.engine.model_copy(update={"scheduler": scheduler})
    return StreamingOpenVino(DefaultPipeline.open(workspace.store.open(int8.artifact), settings), longest)


def _warm(driver: LoadDriver, load: Any, tokens: Sequence[int]) -> None:
    driver.run(make_workload(load.model_copy(update={"requests": 4}), tokens, scale=1e6, run=999))


def _tuned(workspace: Workspace, start: Candidate, grid: SchedulerGrid) -> tuple[Candidate, list[str]]:
    """The scheduler of the batching stage's search, against the schema's default scheduler."""
    options = scheduler_options(start, BatchingSettings(grid=grid, tuning=TUNING))
    began_s = time.monotonic()
    with Contest(workspace, start, options, first_slot=TUNED_LOAD_RUNS) as contest:
        found = search(list(options), TUNING, contest.pairs)
    seconds = time.monotonic() - began_s
    best = found.tried[0]
    notes = [
        f"search over {len(options)} settings: {found.pairs} pairs, {found.cost_fraction:.0%} of the full grid's "
        f"{found.full_pairs}, {seconds:.0f} s; ended because {found.stopped}",
        *(
            f"{each.name}: {math.exp(each.mean):.3f}x the goodput of the schema's defaults, {len(each.log_ratios)} pairs"
            for each in found.tried[:4]
        ),
    ]
    winner = options[best.name] if best.mean > 0 else start
    return winner, [*notes, f"served as keiryo: {winner.name}"]


def _sweep(workspace: Workspace, tuned: Candidate) -> Runs:
    """Every side under every load, in turn."""
    load, tokens = workspace.config.load, prompt_tokens(workspace)
    assert load is not None
    longest = make_workload(load, tokens).longest_tokens
    settings = _transformers()
    store, source = workspace.store, source_candidate(workspace, settings)
    with ExitStack() as stack:
        engines: dict[str, StreamingEngine] = {
            RELEASE: open_served(workspace, tuned, longest),
            DEFAULTS: _defaults(workspace, tuned, longest),
            STATIC: StaticBatches(TransformersEngine.open(store.open(source.artifact), settings)),
            PAGED: PagedBatches(TransformersEngine.open(store.open(source.artifact), settings)),
        }
        if _has_vllm():
            packed = make_candidate(workspace, workspace.source, VLLM_ENGINE, VLLM_WEIGHTS)
            engines[VLLM] = open_served(workspace, packed, longest)
        drivers = {name: LoadDriver(stack.enter_context(closing(each))) for name, each in engines.items()}
        for driver in drivers.values():
            _warm(driver, load, tokens)
        runs: dict[str, dict[float, list[LoadRun]]] = {
            name: {scale: [] for scale in SCALES} for name in drivers
        }
        for number in range(REPEATS):
            for scale in SCALES if number % 2 == 0 else reversed(SCALES):
                workload = make_workload(load, tokens, scale=scale, run=number)
                forward = (number + SCALES.index(scale)) % 2 == 0
                for name in list(drivers) if forward else reversed(list(drivers)):
                    if name not in ONCE or (number == 0 and scale in ONCE[name]):
                        runs[name][scale].append(drivers[name].run(workload))
    return runs


def _rows(workload: str, runs: Runs) -> list[dict[str, object]]:
    slo, rows = SLO, []
    for name, loads in runs.items():
        for scale, each in ((scale, each) for scale, each in loads.items() if each):
            work, measures = f"{workload}, load {scale:.0%}", [summarize_runs([run], slo) for run in each]
            rows += [
                row(name, work, "good requests/s", [good_requests(run, slo) / run.seconds for run in each]),
                row(name, f"{work}, within the SLO", "%", [100 * attainment(run, slo) for run in each]),
                row(name, f"{work}, TTFT p95", "ms", [m.ttft_ms.p95.mean for m in measures]),
                row(name, f"{work}, ITL p95", "ms", [m.itl_ms.p95.mean for m in measures]),
                row(
                    name,
                    f"{work}, throughput",
                    "tokens/s",
                    [m.throughput_tokens_per_s.mean for m in measures],
                ),
            ]
    return rows


def _ratios(runs: Runs) -> dict[str, dict[str, float]]:
    """Goodput of ours over each peer's, with half a good request more on both sides (one may have none)."""
    slo, ratios = SLO, {}

    def goodput(run: LoadRun) -> float:
        return (good_requests(run, slo) + 0.5) / run.seconds

    for peer in (name for name in runs if name != RELEASE):
        for scale in SCALES:
            pairs = list(zip(runs[RELEASE][scale], runs[peer][scale], strict=False))
            if pairs:
                name = f"ours_over_{peer}_load {scale:.0%}{', one pair' if len(pairs) == 1 else ''}"
                ratios[name] = _interval(
                    [math.log(goodput(ours) / goodput(theirs)) for ours, theirs in pairs]
                )
    best = {
        name: [max(goodput(each[scale][number]) for scale in SCALES) for number in range(REPEATS)]
        for name, each in runs.items()
        if name not in ONCE
    }
    for peer in (name for name in best if name != RELEASE):
        ratios[f"ours_over_{peer}_best load of each"] = _interval(
            [math.log(ours / theirs) for ours, theirs in zip(best[RELEASE], best[peer], strict=True)]
        )
    return ratios


def _interval(logs: Sequence[float]) -> dict[str, float]:
    """Geometric mean with its 95 % t interval; of one pair the pair alone."""
    mean = statistics.fmean(logs)
    half = float(stats.t.isf(0.025, len(logs) - 1) * stats.sem(logs)) if len(logs) > 1 else 0.0
    return {"median": math.exp(mean), "ci_low": math.exp(mean - half), "ci_high": math.exp(mean + half)}


def _has_vllm() -> bool:
    try:
        vllm_python()
    except EngineUnavailable:
        return False
    return True


def _peers() -> list[str]:
    """What is there of the peers that are not measured."""
    llama = shutil.which("llama-server") or importlib.util.find_spec("llama_cpp")
    return [
        f"{name}: {said}; no row"
        for name, found, said in (
            ("vLLM", not _has_vllm(), "not installed (make vllm)"),
            (
                "llama.cpp",
                True,
                "installed, but this benchmark does not drive it" if llama else "not installed",
            ),
        )
        if found
    ]


def _drawing(measured: Mapping[str, Runs]) -> str:
    """Goodput and attainment over the load, a row of panels for each kind of prompts."""
    from tasks.report.svg import BLUE, GREEN, GREY, ORANGE, RED, draw_svg

    slo = SLO

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(measured), 2, sharex=True, squeeze=False)
        for (left, right), (workload, runs) in zip(panels, measured.items(), strict=True):
            for (name, loads), colour in zip(runs.items(), (BLUE, ORANGE, GREY, GREEN), strict=False):
                scales = [scale for scale in SCALES if loads[scale]]
                goodput = [
                    statistics.fmean(good_requests(r, slo) / r.seconds for r in loads[s]) for s in scales
                ]
                attained = [100 * statistics.fmean(attainment(r, slo) for r in loads[s]) for s in scales]
                left.plot(scales, goodput, "o-", color=colour, label=name if left is panels[0][0] else None)
                right.plot(scales, attained, "o-", color=colour)
            left.set_ylabel(f"{workload}: good requests/s")
            right.set_ylabel("within the SLO, %")
            right.axhline(100 * slo.attainment, color=RED, linestyle="--", linewidth=1)
            for axes in (left, right):
                axes.set_ylim(bottom=0)
        for axes in panels[-1]:
            axes.set_xlabel("load (1: capacity of the defaults)")
        figure.legend(loc="outside upper right", ncols=4)

    return draw_svg("serve", 5.4, draw)


if __name__ == "__main__":
    main()
