"""`make bench PART=recovery`: what recovery wins back of int4, beside NNCF's own, plain fine-tuning, and GPTQ, which trains nothing.

Work: the demo model at 4 bits, asymmetric, groups of 64, every artifact of the same bytes, scored as in `PART=four_bit` (which nothing
was calibrated or trained on). All train STEPS optimizer steps of 1,024 tokens of the same packed C4:

    before             rounded to nearest
    recovery           ours: rank 32, trained through that very rounding against the source, merged, rounded to nearest
    NNCF FQ_LORA       the same loss: scales and a rank 32 inside its rounding, as its example has it
    LoRA SFT           rank 32, next-token loss, merged, rounded to nearest
    GPTQ               no training; weights of tokens and Hessians from 32 sections of C4
    recovery, GPTQ     the merged weights of `recovery` by GPTQ

NNCF's row needs torchao, which the project does not: `uv pip install --no-deps torchao` (0.18.0). ONLY names a few rows; what is made
is kept in $KEIRYO_HOME, so that the rows can be made one after another.
"""

import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from configs.quality import Margins, QualitySettings, TextSettings
from configs.schema import Config
from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.adaptation.recovery import RANK, recover
from tasks.release.autocast import decide_autocast
from tasks.release.candidate import Candidate
from tasks.release.measuring import make_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact, ArtifactKind
from tasks.store.record import Record
from tasks.store.store import store_home
from tasks.training.log import TrainingLog
from tests.benchmarks.four_bit import DATA, ENGINE, nats_row, window_nats
from tests.benchmarks.nncf_recovery import train_fq_lora
from tests.benchmarks.report_file import write
from tests.conftest import DEMO_MODEL

STEPS = int(os.environ.get("STEPS", "80"))
TRAINING = TrainingSettings(
    steps=STEPS,
    batch_sequences=4,
    sequence_tokens=256,
    learning_rate=1e-3,
    checkpoint_steps=20,
    patience=None,
)
SFT = TRAINING.model_copy(update={"learning_rate": 2e-4})
FQ_LORA = TRAINING.model_copy(update={"learning_rate": 1e-4})  # the example's
NEAREST = WeightSettings(bits=4, symmetric=False, group_size=64)
GPTQ = NEAREST.model_copy(update={"calibration": "gptq", "calibration_samples": 32})


BY_NNCF = "NNCF FQ_LORA"
ROWS = ("before", "recovery", BY_NNCF, "LoRA SFT", "GPTQ", "recovery, GPTQ")


class Made(Record):
    """A checkpoint or an OpenVINO artifact, by its address, and the seconds of its training."""

    digest: str
    seconds: float


def main() -> None:
    """Measure and write docs/bench/recovery.{json,md}."""
    if not DATA.is_dir():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    only = os.environ["ONLY"].split(",") if "ONLY" in os.environ else list(ROWS)
    if BY_NNCF in only and find_spec("torchao") is None:
        sys.exit(
            f"NNCF strips its FQ_LORA with torchao: `uv pip install --no-deps torchao`, or leave {BY_NNCF} out with ONLY"
        )
    prepare_environment(store_home(), hub=False, threads=ENGINE.threads)
    text = TextSettings(
        source=str(DATA / "calibration" / "c4_300docs.jsonl"),
        section_characters=2000,
        calibration_sections=32,
        gate_sections=60,
    )
    quality = QualitySettings(text=text, margins=Margins(accuracy=None))
    workspace = make_workspace(
        Config(name="recovery", model=DEMO_MODEL, threads=2, quality=quality, behaviour=None)
    )
    makers: dict[str, Callable[[], tuple[Candidate, float]]] = {
        "before": lambda: (_rounded(workspace, workspace.source, NEAREST), 0.0),
        "recovery": lambda: _trained(workspace, "recovery", _recover, NEAREST),
        BY_NNCF: lambda: _by_nncf(workspace),
        "LoRA SFT": lambda: _trained(workspace, "sft", _fine_tune, NEAREST),
        "GPTQ": lambda: (_rounded(workspace, workspace.source, GPTQ), 0.0),
        "recovery, GPTQ": lambda: _trained(workspace, "recovery", _recover, GPTQ),
    }
    made = {name: makers[name]() for name in only}
    nats = window_nats(workspace, {name: candidate for name, (candidate, _) in made.items()})
    rows = []
    for name, (candidate, seconds) in made.items():
        stored = (workspace.store.open(candidate.artifact).folder / "openvino_model.bin").stat().st_size
        trained = f", {STEPS * 1024:,} tokens in {seconds / 60:.1f} min" if seconds else ""
        rows.append(nats_row(f"{name} ({stored / 1e6:.1f} MB{trained})", nats[name]))
    print(write("recovery", rows, {}).read_text(encoding="utf-8"))


def _rounded(workspace: Workspace, checkpoint: Artifact, weights: WeightSettings) -> Candidate:
    return make_candidate(workspace, checkpoint, ENGINE, weights)


def _trained(
    workspace: Workspace,
    name: str,
    train: Callable[[Workspace, Path, Path], TrainingLog],
    weights: WeightSettings,
) -> tuple[Candidate, float]:
    """The candidate of a checkpoint that `train` writes, and the seconds that training took."""

    def make() -> Made:
        seconds = 0.0

        def write_checkpoint(out: Path) -> None:
            nonlocal seconds
            with workspace.store.scratch() as scratch:
                log = train(workspace, out, scratch)
            seconds = log.tokens / log.tokens_per_s

        sealed = _sealed(workspace, "checkpoint", write_checkpoint)
        return Made(digest=sealed.digest, seconds=seconds)

    made, _ = workspace.store.once(f"bench-recovery-{name}-{STEPS}", Made, make)
    return _rounded(workspace, workspace.store.open(made.digest), weights), made.seconds


def _recover(workspace: Workspace, out: Path, scratch: Path) -> TrainingLog:
    training = decide_autocast(workspace, TRAINING)
    return recover(workspace.source, _texts(workspace), NEAREST, training, out, scratch)


def _fine_tune(workspace: Workspace, out: Path, scratch: Path) -> TrainingLog:
    training, lora = decide_autocast(workspace, SFT), LoraSettings(method="lora", rank=RANK, alpha=2 * RANK)
    adapter = scratch / "adapter"
    adapter.mkdir()
    log = train_adapter(workspace.source, _texts(workspace), lora, training, adapter, scratch / "training")
    merge_adapter(workspace.source, adapter, out)
    return log


def _by_nncf(workspace: Workspace) -> tuple[Candidate, float]:
    def make() -> Made:
        began_s = time.perf_counter()
        sealed = _sealed(
            workspace,
            "openvino",
            lambda out: train_fq_lora(workspace.source.folder, _texts(workspace), FQ_LORA, out),
        )
        return Made(digest=sealed.digest, seconds=time.perf_counter() - began_s)

    made, _ = workspace.store.once(f"bench-recovery-nncf-{STEPS}", Made, make)
    candidate = Candidate(name=BY_NNCF, artifact=made.digest, engine=ENGINE, weights="")
    return candidate, made.seconds


def _sealed(workspace: Workspace, kind: ArtifactKind, write_files: Callable[[Path], None]) -> Artifact:
    return workspace.store.seal(write_files, kind=kind, parent=workspace.source.digest)


def _texts(workspace: Workspace) -> list[str]:
    return [section.text for section in workspace.splits.train]


if __name__ == "__main__":
    main()
