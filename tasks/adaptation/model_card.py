"""The README.md of an adapter or of trained scales: what they belong to, what they were trained on and how, by digest.

Front matter as the Hugging Face hub reads it (https://huggingface.co/docs/hub/model-cards); `base_model` is the name in the recipe.
"""

import json
from collections.abc import Sequence

from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.store.digest import digest_of
from tasks.training.log import TrainingLog

NAME = "README.md"


def model_card(
    model: str,
    base_digest: str,
    data: str,
    texts: Sequence[str],
    *,
    trained: LoraSettings | WeightSettings,
    training: TrainingSettings,
    log: TrainingLog,
) -> str:
    """Write the card.

    Args:
        model: the base model's name.
        base_digest: of the checkpoint that the adapter was trained on, or of the grids whose scales were.
        data: what the documents come from.
        texts: the documents, in order.
        trained: an adapter's method, rank, scale and targets, or the format of the integers whose scales learnt.
        training: steps, batch, learning rate, with `autocast` decided.
        log: of the training.
    """
    is_adapter = isinstance(trained, LoraSettings)
    front = {
        "base_model": model,
        **({"library_name": "peft"} if is_adapter else {}),
        "pipeline_tag": "text-generation",
        "tags": [trained.method if isinstance(trained, LoraSettings) else "recovery", "keiryo"],
    }
    facts = [
        ("base checkpoint" if is_adapter else "grids trained from", f"`{base_digest}`"),
        ("training data", f"{data}: {len(texts)} documents, digest `{digest_of(list(texts))}`"),
        ("method" if is_adapter else "format", _settings(trained.model_dump(mode="json"))),
        ("training", _settings(training.model_dump(mode="json"))),
        ("trained", f"{log.steps} steps, {log.tokens} tokens, {log.trainable_parameters} parameters"),
        (
            "training loss" if is_adapter else "divergence in training",
            f"{log.losses[0]:.4f} to {log.losses[-1]:.4f} nats a token",
        ),
    ]
    if log.held_out_losses:
        looks = ", ".join(f"{loss:.4f} after {step}" for step, loss in sorted(log.held_out_losses.items()))
        facts.append(("held-out loss", f"{looks} steps; the state after {log.kept_step} was kept"))
    if log.stopped:
        facts.append(("ended early", log.stopped))
    lines = [f"{name}: {json.dumps(value)}" for name, value in front.items()]
    table = [f"| {name} | {value} |" for name, value in facts]
    title = f"# {trained.label} {'adapter of' if is_adapter else 'with trained scales, of'} {model}"
    note = (
        "Trained by Keiryo. Whether it may be released was judged on the artifact that is served, not on this: see the "
        "rollout's report. Licence and limits are those of the base model and of the data."
    )
    return "\n".join(["---", *lines, "---", "", title, "", note, "", "| | |", "|---|---|", *table, ""])


def _settings(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items()).replace("|", "\\|")
