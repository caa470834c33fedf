"""The adapt stage: adapters trained on the user's data, or against the challenger's rounding; merged, exported, judged.

Every method is merged, exported in the release's format and measured; the best on the search split meets the gate. A model adapted
to data may move away from the source on purpose, so it is gated on tasks alone, and it has to pay: its held-out loss, measured on
the artifact that would be served, must be lower with confidence. A recovered model must preserve the function and meets the whole
gate.
"""

from dataclasses import dataclass
from pathlib import Path

from configs.training import AdaptSettings, LoraSettings
from tasks.adaptation.data import chat_template_of, training_texts
from tasks.adaptation.eight_bit import eight_bit_layers
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.adaptation.recovery import recover
from tasks.quality.gate import Improvement
from tasks.release.autocast import decide_autocast
from tasks.release.candidate import Candidate
from tasks.release.judging import (
    describe_gain,
    gain_metrics,
    held_out_gain,
    judge_candidate,
    screen_candidate,
)
from tasks.release.measuring import make_candidate, measure_candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of
from tasks.training.checkpoint import load_tokenizer
from tasks.training.log import TrainingLog
from tasks.training.sealed import curve_csv, trained, training_metrics

CODE = ("tasks/adaptation",)


@dataclass(frozen=True)
class Adapted:
    """One adapter: trained, merged, exported and measured.

    Attributes:
        lora: the method.
        log: of the training.
        result: the artifact that would be served, its measurement, and its figures on the search split.
        gain: its held-out loss against the source's.
    """

    lora: LoraSettings
    log: TrainingLog
    result: CandidateResult
    gain: Improvement

    @property
    def candidate(self) -> Candidate:
        """What would be served."""
        if self.result.candidate is None:
            raise ValueError(f"{self.result.name} has no artifact")
        return self.result.candidate


def adapt_to_data(workspace: Workspace, settings: AdaptSettings, release: Candidate) -> StageResult:
    """Train every method, export and measure each in the release's format, judge the best.

    Raises:
        TrainingError, EngineError, QualityError, StoreError: the stage cannot be completed.
    """
    texts = _texts(workspace, settings.data or "text")
    tried = [_adapt(workspace, settings, lora, texts, release) for lora in settings.methods]
    best = min(tried, key=lambda each: each.result.screen["perplexity_delta_fraction"])
    judged = judge_candidate(workspace, best.candidate, "tasks")
    verdict = judged.verdict if judged.verdict != "PASS" or best.gain.improved else "INCONCLUSIVE"
    losses = "; ".join(f"{each.lora.label} {describe_gain(each.gain)}" for each in tried)
    metrics = {
        f"train/{name}": value
        for each in tried
        for name, value in (
            training_metrics(each.lora.label, each.log) | gain_metrics(each.gain, each.lora.label)
        ).items()
    }
    return StageResult(
        stage="adapt",
        verdict=verdict,
        kept=verdict == "PASS",
        reason=f"held-out loss against the source: {losses}; {best.lora.label} judged: {judged.reason}",
        proposal=best.candidate,
        measurement=best.result.measurement,
        gate=judged.gate,
        candidates=tuple(each.result for each in tried),
        samples=judged.samples,
        provisional=judged.provisional,
        metrics=metrics
        | judged.metrics
        | {f"quality/{name}": value for name, value in gain_metrics(best.gain).items()},
        text=judged.text | {f"training_{each.lora.label}.csv": curve_csv(each.log) for each in tried},
    )


def recover_challenger(workspace: Workspace, settings: AdaptSettings, challenger: Candidate) -> StageResult:
    """Train against the challenger's rounding, export in its format, judge by the whole gate.

    Raises:
        TrainingError, EngineError, QualityError, StoreError: the stage cannot be completed.
    """
    if settings.recovery is None:
        raise ValueError("adapt.recovery is not configured")
    training = decide_autocast(workspace, settings.recovery)
    texts = tuple(section.text for section in workspace.splits.train)
    # A mixed-precision artifact keeps some layers at 8 bits; training has to round the same ones alike.
    eight_bit = (
        eight_bit_layers(workspace.store.open(challenger.artifact).folder / "openvino_model.xml")
        if challenger.format.int8_ratio
        else frozenset[str]()
    )
    recipe = {
        "step": "recover",
        "weights": challenger.format.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
    }
    checkpoint, log = trained(
        workspace.store, workspace.derived, "checkpoint", workspace.source, recipe, texts, training.seed, CODE,
        lambda out, scratch: recover(workspace.source, texts, challenger.format, training, out, scratch, eight_bit),
    )  # fmt: skip
    candidate = make_candidate(
        workspace, checkpoint, challenger.engine, challenger.format, note=", recovered"
    )
    measurement = measure_candidate(workspace, candidate)
    before, after = screen_candidate(workspace, challenger), screen_candidate(workspace, candidate)
    judged = judge_candidate(workspace, candidate, "preserve")
    return StageResult(
        stage="adapt",
        verdict=judged.verdict,
        kept=judged.verdict == "PASS",
        reason=f"recovery: KL {before['kl_nats']:.4f} -> {after['kl_nats']:.4f} nats on the search split; {judged.reason}",
        proposal=candidate,
        measurement=measurement,
        gate=judged.gate,
        candidates=(
            CandidateResult(name=candidate.name, candidate=candidate, measurement=measurement, screen=after),
        ),
        samples=judged.samples,
        provisional=judged.provisional,
        metrics=judged.metrics
        | {f"train/{name}": value for name, value in training_metrics("recovery", log).items()},
        text=judged.text | {"training_recovery.csv": curve_csv(log)},
    )


def _texts(workspace: Workspace, data: str) -> tuple[str, ...]:
    sections = [section.text for section in workspace.splits.train]
    if data == "text":
        return tuple(sections)
    return training_texts(data, sections, chat_template_of(load_tokenizer(workspace.source.folder)))


def _adapt(
    workspace: Workspace,
    settings: AdaptSettings,
    lora: LoraSettings,
    texts: tuple[str, ...],
    release: Candidate,
) -> Adapted:
    training = decide_autocast(workspace, settings.training)
    held_out = tuple(section.text for section in workspace.splits.search)
    recipe = {
        "step": "adapt",
        "lora": lora.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "held_out": digest_of(list(held_out)),
    }
    adapter, log = trained(
        workspace.store, workspace.derived, "adapter", workspace.source, recipe, texts, training.seed, CODE,
        lambda out, scratch: train_adapter(workspace.source, texts, lora, training, out, scratch, held_out),
    )  # fmt: skip
    candidate = make_candidate(
        workspace, _merge(workspace, adapter), release.engine, release.format, note=f", {lora.label} merged"
    )
    result = CandidateResult(
        name=candidate.name,
        candidate=candidate,
        measurement=measure_candidate(workspace, candidate),
        screen=screen_candidate(workspace, candidate),
    )
    return Adapted(lora, log, result, held_out_gain(workspace, None, candidate))


def _merge(workspace: Workspace, adapter: Artifact) -> Artifact:
    def build(out: Path) -> None:
        merge_adapter(workspace.source, adapter.folder, out)

    key = digest_of([adapter.digest, code_digest("tasks/adaptation", "tasks/training")])
    merged, _ = workspace.store.once_artifact(
        f"merge-{key}",
        lambda: workspace.store.seal(
            build, kind="checkpoint", parent=adapter.digest, recipe={"step": "merge"}
        ),
    )
    return merged
