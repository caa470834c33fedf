"""The peer of our adapter training: peft with transformers' Trainer as both come, batches padded to their longest text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.training import LoraSettings
from tasks.training.checkpoint import load_tokenizer

Example = dict[str, list[int]]


def plain_adapter(checkpoint: Path, lora: LoraSettings) -> Any:
    """The model with an untrained adapter, in the defaults of both libraries."""
    import peft
    from transformers import AutoModelForCausalLM

    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), settings)


def example(ids: Sequence[int]) -> Example:
    """A text as the collator wants it."""
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": list(ids)}


def plain_trainer(
    model: Any,
    examples: Sequence[Example],
    checkpoint: Path,
    scratch: Path,
    *,
    steps: int,
    batch: int,
    **more: Any,
) -> Any:
    """A Trainer over the examples; `more` are its arguments."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    arguments = TrainingArguments(
        output_dir=str(scratch / "peer"), max_steps=steps, per_device_train_batch_size=batch, learning_rate=2e-4,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        logging_strategy="no", **more,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(load_tokenizer(checkpoint))
    trainer = Trainer(model=model, args=arguments, train_dataset=list(examples), data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    return trainer
