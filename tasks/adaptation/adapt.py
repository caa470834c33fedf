"""The adapt stage: adapters trained on the user's data, or against the challenger's rounding; merged, exported, judged.

Methods compete on the search split; the one that is exported meets the gate. A model adapted to data may move away from the source
on purpose, so it is gated on tasks alone, and it has to pay: its held-out loss, measured on the artifact that would be served, must
be lower with confidence. A recovered model must preserve the function and meets the whole gate.
"""

from dataclasses import dataclass
from pathlib import Path

from configs.engine import EngineSettings
from configs.schema import AdaptSettings, LoraSettings
from tasks.adaptation.data import chat_template_of, training_texts
from tasks.adaptation.eight_bit import eight_bit_layers
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.adaptation.recovery import recover
from tasks.quality.gate import improvement
from tasks.release.assessment import (
    held_out_samples,
    judge_candidate,
    make_candidate,
    measure_candidate,
    samples,
    screen_candidate,
    source_candidate,
)
from tasks.release.candidate import Candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of
from tasks.training.checkpoint import load_tokenizer
from tasks.training.log import TrainingLog
from tasks.training.sealed import curve_csv, trained, training_metrics

CODE = ("tasks/adaptation",)


@dataclass(frozen=True)
class Trained:
    """One trained and merged adapter, and how it did on the search split."""

    lora: LoraSettings
    checkpoint: Artifact
    log: TrainingLog
    result: CandidateResult


def adapt_to_data(workspace: Workspace, settings: AdaptSettings, release: Candidate) -> StageResult:
    """Train every method, export the best in the release's format, judge it.

    Raises:
        TrainingError, EngineError, QualityError, StoreError: the stage cannot be completed.
    """
    texts = _texts(workspace, settings.data or "text")
    tried = [_train(workspace, settings, lora, texts) for lora in settings.methods]
    best = min(tried, key=lambda each: each.result.screen["perplexity_delta_fraction"])
    candidate = make_candidate(
        workspace, best.checkpoint, release.engine, release.format, note=f", {best.lora.method} merged"
    )
    measurement = measure_candidate(workspace, candidate)
    gate, keys = judge_candidate(workspace, candidate, "tasks")
    gain = improvement(
        held_out_samples(samples(workspace, keys["reference"])),
        held_out_samples(samples(workspace, keys["candidate"])),
    )
    change = (
        f"held-out loss {gain.loss_change_nats:+.4f} nats a token ({gain.ci_low:+.4f} to {gain.ci_high:+.4f}, "
        f"{gain.clusters} sections)"
    )
    verdict = gate.verdict if gate.verdict != "PASS" or gain.improved else "INCONCLUSIVE"
    metrics = {
        f"train/{name}": value
        for each in tried
        for name, value in training_metrics(each.lora.method, each.log).items()
    }
    return StageResult(
        stage="adapt",
        verdict=verdict,
        kept=verdict == "PASS",
        reason=f"{best.lora.method}: {change}; {gate.reason}",
        proposal=candidate,
        measurement=measurement,
        gate=gate,
        candidates=tuple(each.result for each in tried),
        samples=keys,
        metrics=metrics
        | {
            "quality/held_out_loss_delta_nats": gain.loss_change_nats,
            "quality/held_out_loss_delta_nats_ci_low": gain.ci_low,
            "quality/held_out_loss_delta_nats_ci_high": gain.ci_high,
        },
        text={f"training_{each.lora.method}.csv": curve_csv(each.log) for each in tried},
    )


def recover_challenger(workspace: Workspace, settings: AdaptSettings, challenger: Candidate) -> StageResult:
    """Train against the challenger's rounding, export in its format, judge by the whole gate.

    Raises:
        TrainingError, EngineError, QualityError, StoreError: the stage cannot be completed.
    """
    training = settings.recovery
    if training is None:
        raise ValueError("adapt.recovery is not configured")
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
    gate, keys = judge_candidate(workspace, candidate, "preserve")
    return StageResult(
        stage="adapt",
        verdict=gate.verdict,
        kept=gate.verdict == "PASS",
        reason=f"recovery: KL {before['kl_nats']:.4f} -> {after['kl_nats']:.4f} nats on the search split; {gate.reason}",
        proposal=candidate,
        measurement=measurement,
        gate=gate,
        candidates=(
            CandidateResult(name=candidate.name, candidate=candidate, measurement=measurement, screen=after),
        ),
        samples=keys,
        metrics={f"train/{name}": value for name, value in training_metrics("recovery", log).items()},
        text={"training_recovery.csv": curve_csv(log)},
    )


def _texts(workspace: Workspace, data: str) -> tuple[str, ...]:
    sections = [section.text for section in workspace.splits.train]
    if data == "text":
        return tuple(sections)
    return training_texts(data, sections, chat_template_of(load_tokenizer(workspace.source.folder)))


def _train(
    workspace: Workspace, settings: AdaptSettings, lora: LoraSettings, texts: tuple[str, ...]
) -> Trained:
    training = settings.training
    recipe = {
        "step": "adapt",
        "lora": lora.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
    }
    adapter, log = trained(
        workspace.store, workspace.derived, "adapter", workspace.source, recipe, texts, training.seed, CODE,
        lambda out, scratch: train_adapter(workspace.source, texts, lora, training, out, scratch),
    )  # fmt: skip
    merged = _merge(workspace, adapter)
    plain = EngineSettings(engine="transformers", threads=workspace.config.threads)
    candidate = source_candidate(workspace, plain).model_copy(
        update={"artifact": merged.digest, "name": f"{lora.method} merged, full precision"}
    )
    result = CandidateResult(
        name=candidate.name,
        candidate=candidate,
        measurement=None,
        screen=screen_candidate(workspace, candidate),
    )
    return Trained(lora, merged, log, result)


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
