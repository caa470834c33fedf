import json
from pathlib import Path

import pytest

from configs.quality import TextSettings
from tasks.data.text import split_text
from tasks.quality.pack.item import Item
from tasks.quality.pack.write import PackInfo, write_pack

TASKS = ("keiryo_last_word", "keiryo_minimal_pairs", "keiryo_next_sentence", "keiryo_world_facts")
DEMO_TASKS = ("keiryo_last_word", "keiryo_minimal_pairs", "keiryo_world_facts")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackInfo]:
    folder = tmp_path_factory.mktemp("pack")
    return folder, write_pack(folder, split_text(TextSettings(), seed=0), seed=0)


def _items(folder: Path, split: str, task: str) -> list[Item]:
    lines = (folder / split / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Item.model_validate_json(line) for line in lines]


def test_the_gate_has_enough_items_and_clusters(pack: tuple[Path, PackInfo]) -> None:
    _, info = pack
    assert info.tasks == TASKS
    for task in DEMO_TASKS:
        assert info.items["gate"][task] >= 600
        assert info.items["search"][task] >= 200
        assert info.clusters["gate"][task] >= 60


@pytest.mark.parametrize("task", TASKS)
def test_search_and_gate_share_no_item(pack: tuple[Path, PackInfo], task: str) -> None:
    folder, info = pack
    search, gate = _items(folder, "search", task), _items(folder, "gate", task)
    assert (len(search), len(gate)) == (info.items["search"][task], info.items["gate"][task])
    assert not {(i.context, frozenset(i.choices)) for i in search} & {
        (i.context, frozenset(i.choices)) for i in gate
    }
    assert len({item.id for item in search + gate}) == len(search) + len(gate)
    if task != "keiryo_minimal_pairs":
        assert not {item.cluster for item in search} & {item.cluster for item in gate}


@pytest.mark.parametrize("task", TASKS)
def test_items_are_short_well_formed_and_balanced(pack: tuple[Path, PackInfo], task: str) -> None:
    folder, _ = pack
    items = _items(folder, "gate", task)
    for item in items:
        assert len(set(item.choices)) == len(item.choices) >= 2
        assert item.context == item.context.strip()
        assert len(item.context) <= 250
    first = sum(item.answer == 0 for item in items) / len(items)
    assert first == pytest.approx(1 / len(items[0].choices), abs=0.05)


def test_known_facts_stand_in_the_pack(pack: tuple[Path, PackInfo]) -> None:
    folder, _ = pack
    facts = {
        item.context: item.choices[item.answer]
        for split in ("search", "gate")
        for item in _items(folder, split, "keiryo_world_facts")
    }
    assert facts["Prague is a city in the country of"] == "the Czech Republic"
    assert facts["Kenya is a country in"] == "Africa"
    assert facts["The language that people speak in Hungary is"] == "Hungarian"
    assert facts["The month that comes after March is"] == "April"


def test_the_same_seed_gives_the_same_bytes(pack: tuple[Path, PackInfo], tmp_path: Path) -> None:
    folder, info = pack
    splits = split_text(TextSettings(), seed=0)
    assert write_pack(tmp_path / "again", splits, seed=0) == info
    name = "gate/keiryo_minimal_pairs.jsonl"
    assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert write_pack(tmp_path / "other", splits, seed=1).digest != info.digest


def test_minimal_pairs_differ_in_one_word(pack: tuple[Path, PackInfo]) -> None:
    for item in _items(pack[0], "gate", "keiryo_minimal_pairs"):
        assert all(len(choice.split()) == 1 for choice in item.choices)
        assert json.dumps(item.context).isascii()
