"""A seeded slice of Spec-Bench: the same number of first turns of each of its six tasks, as chats in token ids."""

import json
import random
import sys
from pathlib import Path

from tasks.behaviour.chat import ChatTokenizer
from tasks.behaviour.prompts import Message
from tasks.engines.protocol import GenerationRequest

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "spec_bench" / "question.jsonl"
TASKS = ("conversation", "translation", "summarization", "qa", "math_reasoning", "rag")
"""As Spec-Bench reports them; its eight MT-Bench categories are one task, conversation."""

LONGEST_TOKENS = 800  # of a prompt, so that a run stays short; Spec-Bench's summarization goes to 1,700


def draw_prompts(
    folder: Path, per_task: int, new_tokens: int, seed: int = 0
) -> list[list[GenerationRequest]]:
    """Groups of one request of every task, in the order of TASKS.

    Args:
        folder: tokenizer and chat template.
        per_task: groups.
        new_tokens: longest answer.
        seed: of the draw.
    """
    if not FILE.is_file():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    chat = ChatTokenizer(folder)
    by_task: dict[str, list[str]] = {task: [] for task in TASKS}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        task = question["category"] if question["category"] in TASKS else TASKS[0]
        by_task[task].append(question["turns"][0])
    drawn = {}
    for task, texts in by_task.items():
        random.Random(f"{task} {seed}").shuffle(texts)
        encoded = (chat.encode([Message(role="user", content=text)]) for text in texts)
        fitting = (ids for ids in encoded if len(ids) <= LONGEST_TOKENS)
        drawn[task] = [
            GenerationRequest(ids, new_tokens) for ids, _ in zip(fitting, range(per_task), strict=False)
        ]
    return [[drawn[task][group] for task in TASKS] for group in range(per_task)]
