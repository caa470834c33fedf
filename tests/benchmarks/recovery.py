"""`make bench PART=recovery`: what recovery wins back of int4, beside NNCF's own and plain fine-tuning.

Work: the demo model at 4 bits, asymmetric, groups of 64, every artifact of the same bytes, scored as in `PART=four_bit` (which nothing
was calibrated or trained on). All train STEPS optimizer steps of 1,024 tokens of the same packed C4, one seed. Our rate was chosen of
two on WikiText-2's validation part; of NNCF's a third one was tried, and was no better than the best below (both in docs/log.md):

    before               rounded to nearest
    GPTQ                 no training; weights of tokens and Hessians from 32 sections of C4
    recovery             ours: the scales of GPTQ's integers trained against the source, 1e-3
    NNCF FQ_LORA         the same loss: scales and a rank 32 inside its rounding, 1e-4 as its example has it, and at 1e-3
    LoRA SFT             rank 32, 2e-4, next-token loss, merged, rounded to nearest
    within 18 %          the best of `PART=four_bit`: groups of 32, output feedback, some layers at 8 bits; and recovered

Minutes are those of the optimizer steps. Ratios are over windows, with the interval of their median.

NNCF's rows need torchao, which the project does not: `uv pip install --no-deps torchao` (0.18.0). ONLY names a few rows, which are
printed; what is made is kept in $KEIRYO_HOME, so that the rows can be made one after another.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from configs.quality import Margins, QualitySettings, TextSettings
from configs.schema import Config
from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.adaptation.recovery import recover
from tasks.compression.build import resolve_weights, rounded_grids
from tasks.release.autocast import decide_autocast
from tasks.release.candidate import Candidate
from tasks.release.machine import machine_digest
from tasks.release.measuring import make_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tasks.store.artifact import ArtifactKind
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record
from tasks.store.store import store_home
from tests.benchmarks.four_bit import DATA, ENGINE, nats_row, window_nats
from tests.benchmarks.nncf_recovery import train_fq_lora
from tests.benchmarks.report_file import row, write
from tests.conftest import DEMO_MODEL

STEPS = int(os.environ.get("STEPS", "50"))
TRAINING = TrainingSettings(
    steps=STEPS,
    batch_sequences=4,
    sequence_tokens=256,
    learning_rate=1e-3,
    checkpoint_steps=20,
    patience=None,
)
SFT = TRAINING.model_copy(update={"learning_rate": 2e-4})
FQ_LORA = TRAINING.model_copy(update={"learning_rate": 1e-4})
NEAREST = WeightSettings(bits=4, symmetric=False, group_size=64)
GPTQ = NEAREST.model_copy(update={"calibration": "gptq", "calibration_samples": 32})
WITHIN = GPTQ.model_copy(
    update={"group_size": 32, "max_bytes_fraction": 0.18, "output_feedback": True, "calibration_samples": 64}
)
RANK = 32


class Made(Record):
    """A checkpoint or an OpenVINO artifact, by its address, and the seconds of its training."""

    digest: str
    seconds: float


def main() -> None:
    """Measure and write docs/bench/recovery.{json,md}."""
    if not DATA.is_dir():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    prepare_environment(store_home(), hub=False, threads=ENGINE.threads)
    text = TextSettings(
        source=str(DATA / "calibration" / "c4_300docs.jsonl"),
        section_characters=2000,
        calibration_sections=64,
        gate_sections=60,
    )
    quality = QualitySettings(text=text, margins=Margins(accuracy=None))
    workspace = make_workspace(
        Config(name="recovery", model=DEMO_MODEL, threads=2, quality=quality, behaviour=None)
    )
    makers: dict[str, Callable[[], tuple[Candidate, float]]] = {
        "before": lambda: (make_candidate(workspace, workspace.source, ENGINE, NEAREST), 0.0),
        "GPTQ": lambda: (make_candidate(workspace, workspace.source, ENGINE, GPTQ), 0.0),
        "recovery": lambda: _recovered(workspace, GPTQ),
        "NNCF FQ_LORA": lambda: _by_nncf(workspace, FQ_LORA),
        "NNCF FQ_LORA at 1e-3": lambda: _by_nncf(workspace, TRAINING),
        "LoRA SFT": lambda: _fine_tuned(workspace),
        "within 18 %": lambda: (make_candidate(workspace, workspace.source, ENGINE, WITHIN), 0.0),
        "within 18 %, recovered": lambda: _recovered(workspace, WITHIN),
    }
    only = _asked(list(makers))
    made = {name: makers[name]() for name in only}
    nats = window_nats(workspace, {name: candidate for name, (candidate, _) in made.items()})
    rows = []
    for name, (candidate, seconds) in made.items():
        stored = (workspace.store.open(candidate.artifact).folder / "openvino_model.bin").stat().st_size
        trained = f", {STEPS * 1024:,} tokens in {seconds / 60:.1f} min" if seconds else ""
        rows.append(nats_row(f"{name} ({stored / 1e6:.1f} MB{trained})", nats[name]))
        print({key: value for key, value in rows[-1].items() if key != "runs"}, flush=True)
    if len(only) == len(makers):
        print(write("recovery", rows, _ratios(nats)).read_text(encoding="utf-8"))


def _asked(rows: list[str]) -> list[str]:
    """What ONLY names, or all."""
    only = os.environ["ONLY"].split(",") if "ONLY" in os.environ else rows
    if unknown := set(only) - set(rows):
        sys.exit(f"ONLY: {', '.join(sorted(unknown))} is no row; {', '.join(rows)} are")
    if any("NNCF" in name for name in only) and find_spec("torchao") is None:
        sys.exit(
            "NNCF strips its FQ_LORA with torchao: `uv pip install --no-deps torchao`, or name other rows in ONLY"
        )
    return only


def _ratios(nats: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    pairs = [(name, "before") for name in nats if name != "before"]
    pairs += [
        ("recovery", name) for name in nats if name not in ("recovery", "before") and "18 %" not in name
    ]
    pairs += [("within 18 %, recovered", "within 18 %")]
    found = {}
    for name, other in pairs:
        ratio = row("", "", "", [ours / theirs for ours, theirs in zip(nats[name], nats[other], strict=True)])
        found[f"{name} over {other}"] = {
            key: float(str(ratio[key])) for key in ("median", "ci_low", "ci_high")
        }
    return found


def _recovered(workspace: Workspace, weights: WeightSettings) -> tuple[Candidate, float]:
    """The candidate of a format's grids with trained scales, and the seconds of the steps."""
    calibration = [section.text for section in workspace.splits.calibration]
    place = (workspace.store, workspace.source, ENGINE.engine)
    stored_as = resolve_weights(*place, weights, calibration)
    start = rounded_grids(*place, stored_as, calibration)
    training = decide_autocast(workspace, TRAINING)

    def write_grids(out: Path) -> float:
        with workspace.store.scratch() as scratch:
            log = recover(workspace.source, start.folder, _texts(workspace), training, out, scratch)
        return log.tokens / log.tokens_per_s

    made = _made(workspace, f"recover {start.digest}", training, "grid", write_grids)
    grids = workspace.store.open(made.digest)
    return make_candidate(workspace, workspace.source, ENGINE, stored_as, grids=grids), made.seconds


def _fine_tuned(workspace: Workspace) -> tuple[Candidate, float]:
    """The candidate of a merged adapter, rounded to nearest, and the seconds of the steps."""
    lora = LoraSettings(method="lora", rank=RANK, alpha=2 * RANK)
    training = decide_autocast(workspace, SFT)

    def write_checkpoint(out: Path) -> float:
        with workspace.store.scratch() as scratch:
            adapter = scratch / "adapter"
            adapter.mkdir()
            log = train_adapter(
                workspace.source, _texts(workspace), lora, training, adapter, scratch / "training"
            )
            merge_adapter(workspace.source, adapter, out)
        return log.tokens / log.tokens_per_s

    made = _made(workspace, "fine-tune", training, "checkpoint", write_checkpoint)
    return make_candidate(workspace, workspace.store.open(made.digest), ENGINE, NEAREST), made.seconds


def _by_nncf(workspace: Workspace, training: TrainingSettings) -> tuple[Candidate, float]:
    made = _made(
        workspace,
        "nncf",
        training,
        "openvino",
        lambda out: train_fq_lora(
            workspace.source.folder, _texts(workspace), decide_autocast(workspace, training), out
        ),
    )
    return Candidate(name="NNCF FQ_LORA", artifact=made.digest, engine=ENGINE, weights=""), made.seconds


def _made(
    workspace: Workspace,
    name: str,
    training: TrainingSettings,
    kind: ArtifactKind,
    write_files: Callable[[Path], float],
) -> Made:
    """What `write_files` writes, sealed, and the seconds it says; remembered under all that they depend on."""
    code = code_digest(
        "tasks/adaptation",
        "tasks/training",
        "tests/benchmarks/recovery.py",
        "tests/benchmarks/nncf_recovery.py",
    )
    parts = [name, training, workspace.source.digest, digest_of(_texts(workspace)), machine_digest(), code]

    def make() -> Made:
        seconds: list[float] = []
        sealed = workspace.store.seal(
            lambda out: seconds.append(write_files(out)), kind=kind, parent=workspace.source.digest
        )
        return Made(digest=sealed.digest, seconds=seconds[0])

    return workspace.store.once(f"bench-recovery-{digest_of(parts)}", Made, make)[0]


def _texts(workspace: Workspace) -> list[str]:
    return [section.text for section in workspace.splits.train]


if __name__ == "__main__":
    main()
