"""The adapt stage on the user's data: adapters are trained, merged, exported in the release's format and measured; the best is judged.

A model adapted to data may move away from the source on purpose, so it is gated on tasks alone, and it has to pay: its held-out loss,
measured on the artifact that would be served, must be lower with confidence.
"""

from dataclasses import dataclass
from pathlib import Path

from configs.training import AdaptSettings, LoraSettings, TrainingSettings
from tasks.adaptation.adapter_parity import check_adapter
from tasks.adaptation.chat_template import chat_template_of
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.adaptation.model_card import NAME as CARD
from tasks.adaptation.model_card import model_card
from tasks.data.training_rows import training_texts
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
from tasks.release.training_data import leakage_metrics, search_texts, source_name, training_rows
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of
from tasks.training.log import TrainingLog
from tasks.training.memory_saving import predicted_mib, with_saving
from tasks.training.sealed import curve_csv, peak_metrics, trained, training_metrics

CODE = ("tasks/adaptation",)


@dataclass(frozen=True)
class Adapted:
    """One adapter: trained, merged, exported and measured.

    Attributes:
        lora: the method.
        log: of the training.
        result: the artifact that would be served, its measurement, and its figures on the search split.
        gain: its held-out loss against the source's.
        training: what it was trained with, `autocast` decided.
        adapter: what was trained.
        merged: the checkpoint that the artifact was made from.
    """

    lora: LoraSettings
    log: TrainingLog
    result: CandidateResult
    gain: Improvement
    training: TrainingSettings
    adapter: Artifact
    merged: Artifact

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
    texts = training_texts(training_rows(workspace), chat_template_of(workspace.source.folder))
    tried = [_adapt(workspace, settings, lora, texts, release) for lora in settings.methods]
    best = min(tried, key=lambda each: each.result.screen["perplexity_delta_fraction"])
    parity = check_adapter(workspace, best.adapter, best.merged, release.engine.engine)
    judged = judge_candidate(workspace, best.candidate, "tasks")
    verdict = judged.verdict if judged.verdict != "PASS" or best.gain.improved else "INCONCLUSIVE"
    losses = "; ".join(f"{each.lora.label} {describe_gain(each.gain)}" for each in tried)
    metrics = {
        f"train/{name}": value
        for each in tried
        for name, value in (
            training_metrics(each.lora.label, each.log)
            | gain_metrics(each.gain, each.lora.label)
            | peak_metrics(
                each.lora.label,
                predicted_mib(workspace.architecture, each.training, each.lora, each.log.saving),
                each.log,
            )
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
        | leakage_metrics(workspace)
        | parity.metrics
        | judged.metrics
        | {f"quality/{name}": value for name, value in gain_metrics(best.gain).items()},
        text=judged.text | {f"training_{each.lora.label}.csv": curve_csv(each.log) for each in tried},
        artifacts={"adapter": best.adapter.digest},
    )


def _adapt(
    workspace: Workspace,
    settings: AdaptSettings,
    lora: LoraSettings,
    texts: tuple[str, ...],
    release: Candidate,
) -> Adapted:
    training = decide_autocast(workspace, settings.training)
    held_out = search_texts(workspace)
    recipe = {
        "step": "adapt",
        "lora": lora.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "held_out": digest_of(list(held_out)),
        "data": source_name(workspace),
        "max_memory_mib": settings.max_memory_mib,
    }

    def train(out: Path, scratch: Path) -> TrainingLog:
        log = train_adapter(
            workspace.source, texts, lora, training, out, scratch, held_out, settings.max_memory_mib
        )
        used = with_saving(training, log.saving)
        name, base, data = workspace.config.model.name, workspace.source.digest, source_name(workspace)
        card = model_card(name, base, data, texts, trained=lora, training=used, log=log)
        (out / CARD).write_text(card, encoding="utf-8")
        return log

    adapter, log = trained(
        workspace.store,
        workspace.derived,
        "adapter",
        workspace.source,
        recipe,
        texts,
        training.seed,
        CODE,
        train,
    )
    merged = _merge(workspace, adapter)
    candidate = make_candidate(
        workspace, merged, release.engine, release.format.for_trained_weights, note=f", {lora.label} merged"
    )
    result = CandidateResult(
        name=candidate.name,
        candidate=candidate,
        measurement=measure_candidate(workspace, candidate),
        screen=screen_candidate(workspace, candidate),
    )
    gain = held_out_gain(workspace, None, candidate)
    return Adapted(lora, log, result, gain, training, adapter, merged)


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
