"""Writes the pack as lm-eval tasks: `search/` and `gate/`, the same task names in both, no item in common."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from tasks.data.text import TextSplits
from tasks.quality.pack.item import Item, SplitName
from tasks.quality.pack.last_word import last_word_items
from tasks.quality.pack.minimal_pairs import minimal_pair_items
from tasks.quality.pack.next_sentence import next_sentence_items
from tasks.quality.pack.world_facts import world_fact_items
from tasks.quality.quality_error import QualityError
from tasks.store.record import Record

SPLITS: tuple[SplitName, ...] = ("search", "gate")

# A loader of their own instead of `dataset_path: json`: the folder can be moved, and nothing lands in the
# user's cache.
LOADER = '''"""Reads the items beside this file."""
import json
from pathlib import Path

import datasets


def load(file, **_):
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
'''

TASK = """task: {name}
tag: keiryo
custom_dataset: !function items.load
dataset_kwargs: {{file: {name}.jsonl}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


class PackInfo(Record):
    """What was written.

    Attributes:
        digest: sha256 of every file's name and bytes.
        tasks: names, sorted.
        items: split to task to number of items.
        clusters: split to task to number of clusters.
    """

    digest: str
    tasks: tuple[str, ...]
    items: dict[str, dict[str, int]]
    clusters: dict[str, dict[str, int]]


def write_pack(folder: Path, splits: TextSplits, seed: int) -> PackInfo:
    """Generate all items and write them; the same splits and seed give the same bytes.

    Raises:
        QualityError: a task has no item in a split (too little text), or an item twice.
    """
    items = _generate(splits, seed)
    digest = hashlib.sha256()
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        for path, text in _files(split, items):
            (folder / path).write_text(text, encoding="utf-8")
            digest.update(f"{path}\0{text}\0".encode())
    of = {
        split: {name: [i for i in rows if i.split == split] for name, rows in items.items()}
        for split in SPLITS
    }
    return PackInfo(
        digest=digest.hexdigest(),
        tasks=tuple(sorted(items)),
        items={split: {name: len(rows) for name, rows in found.items()} for split, found in of.items()},
        clusters={
            split: {name: len({i.cluster for i in rows}) for name, rows in found.items()}
            for split, found in of.items()
        },
    )


def _generate(splits: TextSplits, seed: int) -> dict[str, list[Item]]:
    text = {"search": splits.search + splits.tasks_search, "gate": splits.gate + splits.tasks_gate}
    sources: dict[str, Callable[[random.Random], Iterable[Item]]] = {
        "keiryo_last_word": lambda rng: last_word_items(rng, text),  # type: ignore[arg-type]
        "keiryo_minimal_pairs": minimal_pair_items,
        "keiryo_next_sentence": lambda rng: next_sentence_items(rng, text),  # type: ignore[arg-type]
        "keiryo_world_facts": world_fact_items,
    }
    items: dict[str, list[Item]] = {}
    for name, source in sources.items():
        items[name] = list(source(random.Random(f"{seed}:{name}")))
        for split in SPLITS:
            if not any(item.split == split for item in items[name]):
                raise QualityError(f"{name} has no {split} items; quality.text has too little held-out text")
        asked = {(item.context, frozenset(item.choices)) for item in items[name]}
        if len(asked) < len(items[name]) or len({item.id for item in items[name]}) < len(items[name]):
            raise QualityError(f"{name}: an item stands twice")
    return items


def _files(split: SplitName, items: dict[str, list[Item]]) -> Iterable[tuple[str, str]]:
    """(path below the folder, text) of every file of one split."""
    yield f"{split}/items.py", LOADER
    for name, rows in sorted(items.items()):
        yield f"{split}/{name}.yaml", TASK.format(name=name)
        lines = (json.dumps(item.model_dump(), ensure_ascii=False) for item in rows if item.split == split)
        yield f"{split}/{name}.jsonl", "\n".join(lines) + "\n"
