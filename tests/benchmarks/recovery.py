"""`make bench PART=recovery`: what recovery wins back of the best calibrated int4, beside the peers, at equal bytes and tokens.

Work: the demo model, int4 with layers at 8 bits within 18 % of the f32 bytes; KL to the source on windows of 512 tokens of
WikiText-2, which nothing was calibrated or trained on, each artifact through the engine that serves it, in f32. All train on the
same packed text of C4:

- start: GPTQ in our format, no training
- recovery: ours, from the start
- NNCF FQ_LORA: the same loss, from rounding to nearest, as NNCF has it: scales and a low-rank change inside its rounding
- LoRA SFT: a plain adapter on the source, next-token loss, merged, then GPTQ in the same format

Everything is kept in $KEIRYO_HOME (give one), so that the parts can be run one after another: ONLY=recovery, ONLY=sft, ... does one and
says its figure, and goes on where it was stopped; without it the table of all is written to docs/bench/recovery.{json,md}. STEPS
optimizer steps of 1,024 tokens.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from configs.quality import Margins, QualitySettings, TextSettings
from configs.schema import Config, LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.compression.build import build_artifact, resolve_weights
from tasks.compression.served_grids import served_grids
from tasks.quality.intervals import text_limits
from tasks.release.candidate import Candidate
from tasks.release.measuring import open_candidate, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact, ArtifactKind
from tasks.store.record import Record
from tasks.store.store import store_home
from tasks.training.log import TrainingLog
from tasks.training.sealed import trained
from tests.benchmarks.four_bit import DATA, ENGINE, FORMATS, divergence, logprobs, windows
from tests.benchmarks.report_file import write
from tests.conftest import DEMO_MODEL

STEPS = int(os.environ.get("STEPS", "40"))
TRAINING = TrainingSettings(
    steps=STEPS,
    batch_sequences=4,
    sequence_tokens=256,
    learning_rate=1e-3,
    checkpoint_steps=10,
    patience=None,
)
SFT = TRAINING.model_copy(update={"learning_rate": 2e-4})
FQ_LORA = TRAINING.model_copy(update={"learning_rate": 1e-4})  # NNCF's example's
TEXT = TextSettings(
    source=str(DATA / "calibration" / "c4_300docs.jsonl"), section_characters=2000, calibration_sections=32, gate_sections=60
)  # fmt: skip


class Made(Record):
    """One artifact, and the seconds that its training took."""

    artifact: str
    seconds: float


class Scored(Record):
    """KL of every window, nats a token."""

    nats: tuple[float, ...]


def main() -> None:
    """Measure and write docs/bench/recovery.{json,md}, or do one part."""
    if not DATA.is_dir():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    prepare_environment(store_home(), hub=False, threads=ENGINE.threads)
    quality = QualitySettings(text=TEXT, margins=Margins(accuracy=None))
    workspace = make_workspace(
        Config(name="recovery", model=DEMO_MODEL, threads=2, quality=quality, behaviour=None)
    )
    calibration = [section.text for section in workspace.splits.calibration]
    weights = resolve_weights(
        workspace.store, workspace.source, "openvino", FORMATS["gptq, asym g64, within 18 %"], calibration
    )
    start = build_artifact(workspace.store, workspace.source, "openvino", weights, calibration)
    parts: dict[str, Callable[[], Made]] = {
        "start": lambda: Made(artifact=start.digest, seconds=0.0),
        "recovery": lambda: _recovered(workspace, weights, start),
        "sft": lambda: _fine_tuned(workspace, weights),
        "nncf": lambda: _by_nncf(workspace),
    }
    only = os.environ.get("ONLY")
    rows = []
    for name, make in parts.items():
        if only in (None, name):
            rows.append(_row(workspace, name, make))
            print({key: value for key, value in rows[-1].items() if key != "runs"}, flush=True)
    if only is None:
        print(write("recovery", rows, {}).read_text(encoding="utf-8"))


def _row(workspace: Workspace, name: str, make: Callable[[], Made]) -> dict[str, object]:
    steps = 0 if name == "start" else STEPS
    made, _ = workspace.store.once(f"bench-recovery-{name}-{steps}", Made, make)
    scored, _ = workspace.store.once(
        f"bench-recovery-kl-{made.artifact}", Scored, lambda: _score(workspace, made.artifact)
    )
    stored = (workspace.store.open(made.artifact).folder / "openvino_model.bin").stat().st_size
    values = np.array(scored.nats)
    low, high = text_limits(values, np.ones_like(values), 0.025, skewed=True)
    tokens = "" if name == "start" else f", {STEPS * 1024:,} tokens in {made.seconds / 60:.1f} min"
    return {
        "name": f"{name} ({stored / 1e6:.1f} MB{tokens})",
        "work": f"KL to the source, {len(values)} windows of 512",
        "unit": "nats",
        "median": float(values.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
        "runs": list(scored.nats),
    }


def _score(workspace: Workspace, artifact: str) -> Scored:
    candidate = Candidate(name="", artifact=artifact, engine=ENGINE, weights="")
    with ExitStack() as stack:
        reference = stack.enter_context(open_candidate(workspace, source_candidate(workspace, ENGINE)))
        engine = stack.enter_context(open_candidate(workspace, candidate))
        return Scored(
            nats=tuple(
                float(divergence(logprobs(reference, window), logprobs(engine, window)).mean())
                for window in windows(workspace.source.folder)
            )
        )


def _recovered(workspace: Workspace, weights: WeightSettings, start: Artifact) -> Made:
    from tasks.adaptation.recovery import recover

    def train(out: Path, scratch: Path) -> TrainingLog:
        grids = served_grids(workspace.store, start, weights)
        return recover(
            workspace.source, _train(workspace), lambda: grids, TRAINING, out, scratch, _held_out(workspace)
        )

    recipe = {
        "engine": "openvino",
        "weights": weights.model_dump(mode="json"),
        "training": TRAINING.model_dump(),
    }
    checkpoint, log = _trained(workspace, "checkpoint", recipe, train)
    print(f"  peak {log.peak_mib:.0f} MiB, held out {log.held_out_losses}, kept {log.kept_step}", flush=True)
    return _made(build_artifact(workspace.store, checkpoint, "openvino", weights, ()), log)


def _fine_tuned(workspace: Workspace, weights: WeightSettings) -> Made:
    from tasks.adaptation.lora import merge_adapter, train_adapter

    lora = LoraSettings(method="lora", rank=32, alpha=64)
    adapter, log = _trained(
        workspace, "adapter", {"lora": lora.model_dump(), "training": SFT.model_dump()},
        lambda out, scratch: train_adapter(
            workspace.source, _train(workspace), lora, SFT, out, scratch, _held_out(workspace)
        ),
    )  # fmt: skip
    merged, _ = workspace.store.once_artifact(
        f"bench-merged-{adapter.digest}",
        lambda: workspace.store.seal(
            lambda out: merge_adapter(workspace.source, adapter.folder, out),
            kind="checkpoint",
            parent=adapter.digest,
        ),
    )
    calibration = [section.text for section in workspace.splits.calibration]
    return _made(build_artifact(workspace.store, merged, "openvino", weights, calibration), log)


def _by_nncf(workspace: Workspace) -> Made:
    from tests.benchmarks.nncf_recovery import train_fq_lora

    began_s = time.perf_counter()
    artifact = workspace.store.seal(
        lambda out: train_fq_lora(workspace.source.folder, _train(workspace), FQ_LORA, out),
        kind="openvino",
        parent=workspace.source.digest,
    )
    return Made(artifact=artifact.digest, seconds=time.perf_counter() - began_s)


def _trained(
    workspace: Workspace,
    kind: ArtifactKind,
    recipe: dict[str, Any],
    train: Callable[[Path, Path], TrainingLog],
) -> tuple[Artifact, TrainingLog]:
    """What `train` makes, sealed once; a run that was stopped goes on from its last training checkpoint."""
    texts = _train(workspace)
    return trained(
        workspace.store,
        workspace.derived,
        kind,
        workspace.source,
        recipe,
        texts,
        0,
        ("tasks/adaptation",),
        train,
    )


def _made(artifact: Artifact, log: TrainingLog) -> Made:
    return Made(artifact=artifact.digest, seconds=log.tokens / log.tokens_per_s)


def _train(workspace: Workspace) -> list[str]:
    return [section.text for section in workspace.splits.train]


def _held_out(workspace: Workspace) -> list[str]:
    return [section.text for section in workspace.splits.search]


if __name__ == "__main__":
    main()
