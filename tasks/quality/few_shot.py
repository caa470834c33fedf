"""The examples of a few-shot prompt, drawn for each item apart."""

import hashlib
import json
from typing import Any

FEWSHOT_SEED = 1234


def seed_examples(task: Any) -> None:
    """Let the examples of a lm-eval task's prompts depend on the item alone.

    lm-eval draws them from one stream in the order of the documents: the same item would get another prompt
    as soon as more items are asked, and answers at an earlier look could not be kept.
    """
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    build = task.fewshot_context

    def seeded(doc: Any, *arguments: Any, **settings: Any) -> Any:
        text = json.dumps(doc, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{FEWSHOT_SEED}:{text}".encode()).digest()
        task.set_fewshot_seed(seed=int.from_bytes(digest[:8], "big"))
        return build(doc, *arguments, **settings)

    task.fewshot_context = seeded
