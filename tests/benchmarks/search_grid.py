"""The grid behind `make bench PART=search`: every candidate of a real space built, screened and timed once.

A row is appended to a file in the store as it comes, so that the grid can be measured in several runs. What several candidates are
built from (the grids of 4-bit GPTQ) is timed on its own: a search pays for it once. The source's export is not counted: scoring the
source makes it before any search begins. At the end every candidate is measured in full, which no search is told: what a front is worth
is not to depend on how lucky a short run was.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from configs.quality import Margins, QualitySettings, TextSettings
from configs.quantize import QuantizeSettings
from configs.schema import Config, RequestSettings
from flows.offline import prepare_environment
from tasks.compression.build import resolve_weights
from tasks.compression.build_cost import build_cost
from tasks.quantization.candidate_needs import predict
from tasks.quantization.explore import SCORE_SECONDS_A_GIB
from tasks.quantization.options import Option, brief, options_of, served
from tasks.release.judging import screen_candidate
from tasks.release.measuring import make_candidate, measure_on
from tasks.release.preparation import make_workspace
from tasks.release.scoring import CandidateScores
from tasks.release.workspace import Workspace
from tasks.store.record import Record
from tests.conftest import DEMO_MODEL

SPACE = os.environ.get("SPACE", "first")
_FOUR = {"engine": ["openvino"], "bits": [4], "compute": ["f32", "bf16"], "kv_cache": ["u8"], "activation_group": [32],
         "calibration_samples": 16}  # fmt: skip
SPACES = {
    "first": [
        {"engine": ["openvino", "onnxruntime"], "compute": ["f32", "bf16"], "kv_cache": ["f32", "u8"], "activation_group": [32]},
        _FOUR | {"symmetric": [False], "calibration": ["awq+scale_estimation"], "int8_ratio": [0.0, 0.2]},
        _FOUR | {"symmetric": [True], "calibration": ["gptq"], "max_bytes_fraction": [None, 0.18]},
    ],
    "second": [
        {"engine": ["openvino"], "symmetric": [False], "group_size": [16, 32], "compute": ["bf16"], "kv_cache": ["bf16", "u8"]},
        {"engine": ["onnxruntime"], "symmetric": [False], "group_size": [16, 32], "kv_cache": ["f32", "u8"]},
        {"engine": ["openvino"], "bits": [8], "symmetric": [True], "compute": ["f32", "bf16"], "kv_cache": ["u8"]},
        {"engine": ["onnxruntime"], "bits": [4], "symmetric": [False], "group_size": [32], "calibration": ["hqq", "k_quant"]},
        _FOUR | {"symmetric": [False], "group_size": [32], "calibration": ["awq"], "compute": ["bf16"], "int8_ratio": [0.0, 0.2]},
        _FOUR | {"symmetric": [False], "group_size": [32], "calibration": ["gptq"], "max_bytes_fraction": [None, 0.18]},
    ],
}  # fmt: skip
"""The second has other groups, calibrations and activations than the first, by which numbers of the strategy were chosen."""
SETTINGS = QuantizeSettings.model_validate({"space": SPACES[SPACE]})
CONFIG = Config(
    name="search",
    model=DEMO_MODEL,
    threads=2,
    behaviour=None,
    quality=QualitySettings(
        margins=Margins(perplexity_fraction=0.02, kl_nats=0.02, accuracy=None),
        text=TextSettings(gate_sections=60, search_sections=16, calibration_sections=16),
    ),
    requests=RequestSettings(max_new_tokens=16, one_stream_new_tokens=24, repeats=3),
    quantize=SETTINGS,
)
FULL_REPEATS = (3, 4)
"""Of the full measurements, each of all candidates in turn; the store knows them apart by their number."""
ROW_SECONDS = {
    "none": 25.0,
    "hqq": 40.0,
    "k_quant": 60.0,
    "awq": 100.0,
    "awq+scale_estimation": 120.0,
    "gptq": 220.0,
}
"""A row is not begun with less time left."""
FULL_SECONDS = 20.0
"""Nor is a full measurement."""
Made = TypeVar("Made")


class GridRow(Record):
    """One candidate as it came out.

    Attributes:
        name: of the option.
        build: what is built, the same for all that are served from it.
        build_s: building it, where all that it shares is there; 0 where the artifact itself is.
        shared: what it is built from, by name, with the seconds that takes.
        screen_s: scoring the search text, the engine's start included.
        nats: divergence from the source on the search text.
        perplexity_fraction: growth of perplexity there.
        size_bytes: of the artifact's largest file, the weights.
        speed_s: a short run of the requests, the engine's start included.
        decode, throughput: its tokens a second, one stream and all in flight.
        full: tokens a second of the full measurements, (one stream, all in flight) each; no search is told.
        others_share: of the processor time while the row was measured, what other processes took; None where nobody looked.
    """

    name: str
    build: str
    build_s: float
    shared: dict[str, float]
    screen_s: float
    nats: float
    perplexity_fraction: float
    size_bytes: int
    speed_s: float
    decode: float
    throughput: float
    full: tuple[tuple[float, float], ...] = ()
    others_share: float | None = None


def read_rows(workspace: Workspace) -> list[GridRow]:
    """What was measured so far."""
    file = _rows_file(workspace)
    if not file.is_file():
        return []
    rows = [GridRow.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return list({row.name: row for row in rows}.values())


def open_workspace() -> Workspace:
    """The demo model, with a store of its own below KEIRYO_HOME, so that builds are builds."""
    home = Path(os.environ.get("KEIRYO_HOME", ".keiryo")).resolve() / f"bench-search-{SPACE}"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["KEIRYO_HOME"] = str(home)
    prepare_environment(home, hub=False, threads=CONFIG.threads)
    return make_workspace(CONFIG)


def space_options(workspace: Workspace) -> tuple[Option, ...]:
    """The options as the stage sees them on a machine that has built none of them."""
    predicted = (
        predict(workspace.architecture, declared.weights, engine, CONFIG.requests)
        for declared in SETTINGS.declared
        for engine in served(declared, SETTINGS, CONFIG.threads)
    )
    gib = 4 * workspace.architecture.parameters / 2**30
    return options_of(CONFIG, {each.name: each for each in predicted}, SCORE_SECONDS_A_GIB * gib)


def measure_grid(workspace: Workspace, minutes: float) -> bool:
    """Measure what is missing, for at most about that long; whether the grid is whole."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    began_s = time.monotonic()
    with CandidateScores(workspace, None, "search") as source:
        source.text()
    # The quick ones first, and those of one build after another, so that the second and later ones find the artifact.
    options = sorted(
        space_options(workspace),
        key=lambda each: (ROW_SECONDS[each.weights.calibration], str(each.build), each.name),
    )
    done = {row.name: row for row in read_rows(workspace)}
    for option in options:
        left_s, built = 60 * minutes - (time.monotonic() - began_s), {each.build for each in done.values()}
        kind = "none" if str(option.build) in built else option.weights.calibration
        if option.name in done or left_s < ROW_SECONDS[kind]:
            continue
        row = _measured(workspace, option, built)
        done[row.name] = row
        _keep(workspace, row)
    if len(done) < len(options):
        return False
    for number, repeats in enumerate(FULL_REPEATS, 1):
        for option in options:
            row, left_s = done[option.name], 60 * minutes - (time.monotonic() - began_s)
            if len(row.full) >= number:
                continue
            if left_s < FULL_SECONDS:
                return False
            done[row.name] = row.model_copy(
                update={"full": (*row.full, _in_full(workspace, option, repeats))}
            )
            _keep(workspace, done[row.name])
    return True


def _in_full(workspace: Workspace, option: Option, repeats: int) -> tuple[float, float]:
    candidate = make_candidate(workspace, workspace.source, option.engine, option.weights)
    requests = workspace.config.requests.model_copy(update={"repeats": repeats})
    measured = measure_on(workspace, candidate, requests).performance
    return measured.decode_tokens_per_s, measured.throughput_tokens_per_s


def _keep(workspace: Workspace, row: GridRow) -> None:
    """Append it; of a candidate's rows the last one counts."""
    with _rows_file(workspace).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row.model_dump()) + "\n")
    print(row.model_dump_json(), flush=True)


def _measured(workspace: Workspace, option: Option, built: set[str]) -> GridRow:
    shared, before = _shared(workspace, option), _processor_s()
    candidate, build_s = _timed(
        lambda: make_candidate(workspace, workspace.source, option.engine, option.weights)
    )
    screen, screen_s = _timed(lambda: screen_candidate(workspace, candidate))
    measured, speed_s = _timed(lambda: measure_on(workspace, candidate, brief(workspace.config.requests)))
    all_s, own_s = (after - then for after, then in zip(_processor_s(), before, strict=True))
    files = workspace.store.open(candidate.artifact).manifest.files
    cost = build_cost(workspace.store, candidate.artifact)  # of a run before this one, where that was ended
    return GridRow(
        name=option.name,
        build=str(option.build),
        build_s=0.0 if str(option.build) in built else max(build_s, cost.seconds if cost else 0.0),
        shared=shared,
        screen_s=screen_s,
        nats=screen["kl_nats"],
        perplexity_fraction=screen["perplexity_delta_fraction"],
        size_bytes=max(file.size_bytes for file in files),
        speed_s=speed_s,
        decode=measured.performance.decode_tokens_per_s,
        throughput=measured.performance.throughput_tokens_per_s,
        others_share=max(all_s - own_s, 0.0) / all_s,
    )


def _shared(workspace: Workspace, option: Option) -> dict[str, float]:
    """The seconds of what the option is built from, made now where nobody has."""
    if option.weights.calibration != "gptq":
        return {}
    name = f"grids {'sym' if option.weights.symmetric else 'asym'} g{option.weights.group_size}"
    for row in read_rows(workspace):
        if name in row.shared:
            return {name: row.shared[name]}
    # A budget of bytes is resolved on the plain 4-bit grids: asking for one makes these and nothing else.
    asked = option.weights.model_copy(update={"max_bytes_fraction": 0.5})
    texts = [section.text for section in workspace.splits.calibration]
    _, seconds = _timed(
        lambda: resolve_weights(workspace.store, workspace.source, option.engine.engine, asked, texts)
    )
    return {name: seconds}


def _processor_s() -> tuple[float, float]:
    """Busy seconds of all processors, and of this process."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest, own.user + own.system


def _rows_file(workspace: Workspace) -> Path:
    return workspace.store.home / "grid.jsonl"


def _timed(make: Callable[[], Made]) -> tuple[Made, float]:
    began_s = time.perf_counter()
    return make(), time.perf_counter() - began_s
