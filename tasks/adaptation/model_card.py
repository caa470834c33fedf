"""The README.md of an adapter: what it belongs to, what it was trained on and how, by digest.

Front matter as the Hugging Face hub reads it (https://huggingface.co/docs/hub/model-cards); `base_model` is the name in the recipe.
"""

import json

from configs.training import LoraSettings, TrainingSettings
from tasks.training.log import TrainingLog

NAME = "README.md"


def model_card(
    *,
    model: str,
    base_digest: str,
    data: str,
    data_digest: str,
    documents: int,
    lora: LoraSettings,
    training: TrainingSettings,
    log: TrainingLog,
) -> str:
    """Write the card.

    Args:
        model: the base model's name.
        base_digest: of the checkpoint that the adapter was trained on.
        data: what `adapt.data` names.
        data_digest: of the documents, in order.
        documents: how many there were.
        lora: method, rank, scale and targets.
        training: steps, batch, learning rate, with `autocast` decided.
        log: of the training.
    """
    front = {
        "base_model": model,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": [lora.method, "keiryo"],
    }
    facts = [
        ("base checkpoint", f"`{base_digest}`"),
        ("training data", f"{data}: {documents} documents, digest `{data_digest}`"),
        ("method", _settings(lora.model_dump(mode="json"))),
        ("training", _settings(training.model_dump(mode="json"))),
        ("trained", f"{log.steps} steps, {log.tokens} tokens, {log.trainable_parameters} parameters"),
        ("training loss", f"{log.losses[0]:.4f} to {log.losses[-1]:.4f} nats a token"),
    ]
    if log.held_out_losses:
        looks = ", ".join(f"{loss:.4f} after {step}" for step, loss in sorted(log.held_out_losses.items()))
        facts.append(("held-out loss", f"{looks} steps; the state after {log.kept_step} was kept"))
    if log.stopped:
        facts.append(("ended early", log.stopped))
    lines = [f"{name}: {json.dumps(value)}" for name, value in front.items()]
    table = [f"| {name} | {value} |" for name, value in facts]
    title = f"# {lora.label} adapter of {model}"
    note = (
        "Trained by Keiryo. Whether it may be released was judged on the artifact that is served, not on this adapter: see the "
        "rollout's report. Licence and limits are those of the base model and of the data."
    )
    return "\n".join(["---", *lines, "---", "", title, "", note, "", "| | |", "|---|---|", *table, ""])


def _settings(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items()).replace("|", "\\|")
