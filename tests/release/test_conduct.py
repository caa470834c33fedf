"""What is shown of a candidate's answers leaves the person who judges the blinded pairs blind."""

import csv
import io

from answers import answers, prose

from configs.behaviour import BehaviourSettings
from tasks.behaviour.report import compare_answers
from tasks.judging.spot_check import blinded_pairs
from tasks.release.conduct import named_answers


def test_no_answer_of_a_blinded_pair_stands_beside_a_models_name() -> None:
    source = [prose(i) for i in range(64)]
    changed = [" ".join(text.split()[: 12 - i // 4]) if i < 20 else text for i, text in enumerate(source)]
    rows = compare_answers(answers(source, "a"), answers(changed, "b"), BehaviourSettings()).rows
    pairs, key = blinded_pairs(rows, 12, seed=0)
    table = named_answers(rows, key)
    shown = list(csv.DictReader(io.StringIO(table)))
    assert list(shown[0]) == ["prompt_id", "prompt", "source", "candidate"]
    assert not {row["prompt_id"] for row in shown} & set(key.prompt_ids)
    assert not any(pair.prompt in table for pair in pairs)
    # what changed most of the others is told
    others = [row for row in rows if row.prompt_id not in key.prompt_ids]
    assert [row["prompt_id"] for row in shown] == [row.prompt_id for row in others[: len(shown)]]
