"""`make bench PART=verdict`: time to a decision, against lm-eval's own `hf` model on the same rows.

Work: `ext_arc_easy`, `ext_piqa` and `ext_hellaswag` of the data beside the project, 500 rows each; the demo model. lm-eval scores
the source in float32 and in bfloat16, task by task; a second model of the same shape costs it the same, so its time counts twice. We
judge an int8 candidate on all rows, the same with early stopping, and plain int4 with early stopping, each from an empty memory:
source and candidate, text (perplexity, KL) and tasks, the engines' start included. Both compute in the type that this machine
multiplies faster (`keiryo doctor` tells it). When early stopping stops depends on the order in which items are drawn: int8 is judged in
three. The answers of a source in f32 are compared with lm-eval's. lm-eval's runs stand between ours.
"""

import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from configs.engine import EngineSettings
from configs.quality import Margins, QualitySettings, SequentialSettings, TaskSettings, TextSettings
from configs.schema import Config
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.engines.arithmetic import multiply_rates
from tasks.quality.samples import Samples
from tasks.release import judging
from tasks.release.judging import Judgement, judge_candidate
from tasks.release.measuring import make_candidate, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.scoring import CandidateScores
from tasks.release.workspace import Workspace
from tests.benchmarks.report_file import write
from tests.conftest import DEMO_MODEL

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = ("ext_arc_easy", "ext_piqa", "ext_hellaswag")
THREADS = 2
ORDERS = (0, 1, 2)
"""Seeds of the order in which items are drawn."""
BATCH_SEQUENCES = 16  # of lm-eval's hf model; 1, 8 and 32 were slower here
FORMATS = {
    "int8": WeightSettings(bits=8, symmetric=False),
    "int4": WeightSettings(bits=4, group_size=64),
}
Compute = Literal["f32", "bf16"]
Row = dict[str, Any]


def main() -> None:
    """Measure and write docs/bench/verdict.{json,md}."""
    if not DATA.is_dir():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    logging.basicConfig(level=logging.WARNING)
    items = int(os.environ.get("ITEMS", "500"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KEIRYO_HOME"] = folder
        prepare_environment(Path(folder), hub=False, threads=THREADS)
        tasks = Path(folder) / "ext"
        subprocess.run([sys.executable, DATA / "make_tasks.py", tasks], check=True, stdout=subprocess.DEVNULL)
        rates = multiply_rates()
        fast: Compute = "bf16" if rates.bf16_gflops > rates.f32_gflops else "f32"
        orders = [make_workspace(_config(tasks, items, "planned", fast, order)) for order in ORDERS]
        whole = make_workspace(_config(tasks, items, "none", fast))
        exact = make_workspace(_config(tasks, items, "none", "f32"))
        early = orders[0]
        for weights in FORMATS.values():
            make_candidate(early, early.source, _engine(fast, "u8"), weights)
        source_candidate(early, early.config.quality.reference)
        peers = {name: _Peer(early.source.folder, name) for name in ("float32", "bfloat16")}
        decided = {}
        for part, (order, workspace) in enumerate(zip(ORDERS, orders, strict=True)):
            peers["float32"].score(tasks, NAMES[part : part + 1], items)
            decided[f"int8, early stopping, order {order}"] = _judge(workspace, "int8")
        decided["int4, early stopping"] = _judge(early, "int4")
        peers["bfloat16"].score(tasks, NAMES[:2], items)
        decided["int8, all rows"] = _judge(whole, "int8")
        peers["bfloat16"].score(tasks, NAMES[2:], items)
        rows = [each for name, run in decided.items() for each in run.rows(name)]
        rows += [each for peer in peers.values() for each in peer.rows()]
        path = write("verdict", rows, _ratios(peers, decided))
        with path.open("a", encoding="utf-8") as file:
            file.write(
                f"\nKeiryo computed in {fast}: here f32 multiplies at {rates.f32_gflops:.0f} GFLOPS, bf16 at {rates.bf16_gflops:.0f}.\n"
            )
            file.writelines(_agreement(exact, peers["float32"]))
        print(path.read_text(encoding="utf-8"))


class _Peer:
    """lm-eval's hf model of the source in one type; every task's seconds and answers."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.dtype = folder, dtype
        self.seconds: dict[str, float] = {}
        self.answers: dict[str, dict[str, tuple[float, float]]] = {}
        self._model: Any = None

    def score(self, tasks: Path, names: tuple[str, ...], items: int) -> None:
        """Score tasks from cold; the loading is in the first task's seconds."""
        import torch
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        torch.set_num_threads(THREADS)
        began_s = time.perf_counter()
        if self._model is None:
            self._model = HFLM(
                pretrained=str(self.folder), device="cpu", dtype=self.dtype, batch_size=BATCH_SEQUENCES
            )
        for name in names:
            loaded = TaskManager(include_path=str(tasks), include_defaults=False).load([name])
            drawn = sorted(_drawn(name, items))
            found = evaluate(self._model, loaded, samples={name: drawn}, bootstrap_iters=0, log_samples=True)
            self.seconds[name] = time.perf_counter() - began_s
            self.answers[name] = {
                str(sample["doc_id"]): (sample["acc"], _lead(sample)) for sample in found["samples"][name]
            }
            began_s = time.perf_counter()

    @property
    def total_s(self) -> float:
        """Seconds of one model."""
        return sum(self.seconds.values())

    def rows(self) -> list[Row]:
        """One row a task, one for both models."""
        each = [_row(f"lm-eval hf {self.dtype}", name, s) for name, s in self.seconds.items()]
        return [*each, _row(f"lm-eval hf {self.dtype}", "source and candidate, all rows", 2 * self.total_s)]


class _Run:
    """One decision of ours, with the seconds of its parts."""

    def __init__(self, judgement: Judgement, seconds: float, parts: Mapping[str, float]) -> None:
        self.judgement, self.seconds, self.parts = judgement, seconds, parts

    def rows(self, name: str) -> list[Row]:
        """One row a part, one for the whole."""
        each = [_row(f"keiryo {name}", part, s) for part, s in self.parts.items()]
        return [*each, _row(f"keiryo {name}: {self.judgement.verdict}", "source and candidate", self.seconds)]


def _judge(workspace: Workspace, weights: str) -> _Run:
    """From no score to a verdict; lm_eval is imported and the tasks are loaded before, on both sides."""
    results = workspace.store.home / "results"
    kept = [
        path for kind in ("samples", "noise", "task-sizes", "answers") for path in results.glob(f"{kind}-*")
    ]
    for path in (*workspace.derived.iterdir(), *kept):
        path.unlink()
    parts: dict[str, float] = {}

    class Timed(CandidateScores):
        def text(self) -> Samples:
            began_s = time.perf_counter()
            try:
                return super().text()
            finally:
                self._note("text", began_s)

        def task(self, name: str, items: int, judged: int = 0) -> Samples:
            began_s = time.perf_counter()
            try:
                return super().task(name, items, judged)
            finally:
                self._note(name, began_s)

        def _note(self, what: str, began_s: float) -> None:
            who = "source" if self._is_reference else "candidate"
            parts[f"{who}, {what}"] = parts.get(f"{who}, {what}", 0.0) + time.perf_counter() - began_s

    judging.CandidateScores = Timed  # type: ignore[misc]
    try:
        compute = workspace.config.quality.reference.compute
        candidate = make_candidate(workspace, workspace.source, _engine(compute, "u8"), FORMATS[weights])
        began_s = time.perf_counter()
        judgement = judge_candidate(workspace, candidate, "preserve")
        return _Run(judgement, time.perf_counter() - began_s, parts)
    finally:
        judging.CandidateScores = CandidateScores  # type: ignore[misc]


def _ratios(peers: Mapping[str, _Peer], decided: Mapping[str, _Run]) -> dict[str, dict[str, float]]:
    """Of whole decisions; the interval spans the ratios of single tasks where all rows were scored, and those of the orders."""
    found = {}
    by_order = [run for name, run in decided.items() if "order" in name]
    for dtype, peer in peers.items():
        for name, run in decided.items():
            ratio = 2 * peer.total_s / run.seconds
            single = [
                2 * s / (run.parts[f"source, {task}"] + run.parts[f"candidate, {task}"])
                for task, s in peer.seconds.items()
                if "all rows" in name
            ] or [ratio]
            found[f"lm-eval hf {dtype} over keiryo, {name}"] = _spread(ratio, [*single, ratio])
        ratios = [2 * peer.total_s / run.seconds for run in by_order]
        found[f"lm-eval hf {dtype} over keiryo, int8, early stopping"] = _spread(
            statistics.median(ratios), ratios
        )
    return found


def _spread(middle: float, ratios: Sequence[float]) -> dict[str, float]:
    return {"median": middle, "ci_low": min(ratios), "ci_high": max(ratios)}


def _agreement(workspace: Workspace, peer: _Peer) -> Iterator[str]:
    """Rows on which our f32 source and lm-eval's fp32 model differ, and how near a tie each was, as lines."""
    with CandidateScores(workspace, None, "gate") as source:
        scored = [row for name in NAMES for row in source.task(name, len(peer.answers[name])).rows]
    ours = {(row.task, row.item): row.value for row in scored if row.metric == "acc"}
    yield "\nEvery figure is of one run. A ratio is that of whole decisions, our text and our start included; in brackets the range\n"
    yield "of the single tasks without them, where all rows were scored, and of the three orders. Early stopping scores fewer rows:\n"
    yield "it is time to a decision.\n"
    yield "\nOur f32 source against lm-eval's hf float32, answers to the same rows:\n\n"
    for name, answers in peer.answers.items():
        leads = [f"{lead:.1e}" for item, (acc, lead) in answers.items() if ours[name, item] != acc]
        near = f"; the best choice led by {', '.join(leads)} nats there" if leads else ""
        yield f"- {name}: {len(leads)} of {len(answers)} differ{near}\n"


def _lead(sample: Mapping[str, Any]) -> float:
    """Nats by which the best choice leads the second: 0 is a tie."""
    first, second, *_ = sorted((float(r[0]) for r in sample["filtered_resps"]), reverse=True)
    return first - second


def _drawn(name: str, items: int) -> list[int]:
    order = list(range(500))
    random.Random(f"0:{name}").shuffle(order)
    return order[:items]


def _engine(compute: Compute, kv_cache: Literal["f32", "bf16", "u8"]) -> EngineSettings:
    """OpenVINO; with a u8 cache as its CPU plugin serves by default: activations in int8, groups of 32."""
    group = 32 if kv_cache == "u8" else 0
    return EngineSettings(
        engine="openvino", compute=compute, kv_cache=kv_cache, activation_group=group, threads=THREADS
    )


def _config(tasks: Path, items: int, kind: str, compute: Compute, order: int = 0) -> Config:
    quality = QualitySettings(
        seed=order,
        text=TextSettings(section_characters=400, gate_sections=60),
        tasks=TaskSettings(pack=str(tasks), names=NAMES, items=items),
        sequential=SequentialSettings.model_validate({"kind": kind}),
        margins=Margins(accuracy=float(os.environ.get("MARGIN", "0.03"))),
        discordance=0.02,  # int8 changed 1.4 to 3.2 % of the answers of a task
        tries=1,
        reference=_engine(compute, compute),
    )
    return Config(name="verdict", model=DEMO_MODEL, threads=THREADS, quality=quality, behaviour=None)


def _row(name: str, work: str, seconds: float) -> Row:
    return {
        "name": name,
        "work": work,
        "unit": "s",
        "median": seconds,
        "ci_low": seconds,
        "ci_high": seconds,
        "runs": [seconds],
    }


if __name__ == "__main__":
    main()
