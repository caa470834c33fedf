"""`keiryo approve` and `reject` on a rollout that was logged to a server: what is recorded, shown, tagged and refused."""

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from fake_rollout import CONFIG, RESULTS, evidence
from typer.testing import CliRunner

from configs.schema import TrackingSettings
from flows.cli import app
from tasks.judging.spot_check import BlindedPair, BlindingKey
from tasks.store.digest import digest_of
from tasks.store.store import Store
from tasks.tracking.runs import log_rollout_end, log_rollout_start, log_stage
from tasks.tracking.store import open_tracking

PAIRS = tuple(
    BlindedPair(number=n, prompt=f"Question {n}?", answer_a=f"a{n}", answer_b=f"b{n}") for n in (1, 2, 3)
)
KEY = BlindingKey(prompt_ids=("p1", "p2", "p3"), candidate_is=("A", "B", "B"), seed=0)
SHEET = "".join(f"{pair.model_dump_json()}\n" for pair in PAIRS)


class Decided:
    """A rollout on a server, and the command line that decides on it."""

    def __init__(self, root: Path, database: Path) -> None:
        shutil.copy(database, root / "server.db")
        self.root, self.uri = root, f"sqlite:///{root / 'server.db'}"
        self.store = Store(root / "store")
        self.tracking = open_tracking(TrackingSettings(uri=self.uri))

    def log(self, text: dict[str, str]) -> str:
        run_id = log_rollout_start(self.tracking, CONFIG)
        bare = [each.model_copy(update={"gate": None, "candidates": ()}) for each in RESULTS]
        results = [
            each.model_copy(update={"text": text}) if each.stage == "quantize" else each for each in bare
        ]
        for result in results:
            log_stage(self.tracking, run_id, result, {})
        made = evidence(run_id)
        log_rollout_end(self.tracking, made.summary, made.ledger, made.environment, "<html>", {})
        return run_id

    def call(self, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments, "--uri", self.uri])
        assert done.exit_code == code, done.output
        return done.output

    def sheet(self, *labels: str) -> Path:
        path = self.root / "sheet.jsonl"
        rows = [pair.model_dump() | {"label": label} for pair, label in zip(PAIRS, labels, strict=False)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path


@pytest.fixture
def world(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decided:
    monkeypatch.chdir(tmp_path)  # a database without a server keeps its artifacts in the working folder
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("KEIRYO_MLFLOW", str(migrated.parent))
    return Decided(tmp_path, migrated)


def test_decisions_are_signed_kept_shown_and_tagged(world: Decided, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = world.log({"spot_check.jsonl": SHEET})
    world.store.remember(f"spot-check-key-{digest_of(list(PAIRS))}", KEY)
    signed = ("--by", "Ada", "--reason", "harmless")
    first = json.loads(world.call("approve", run_id[:8], *signed, "--days", "30", "--json"))
    sheet = world.sheet("A", "A", "tie")
    second = json.loads(world.call("reject", run_id, *signed, "--sheet", str(sheet), "--json"))

    today = datetime.now(UTC).date()
    assert (first["decision"]["approver"], first["decision"]["decision"]) == ("Ada", "approve")
    assert first["decision"]["artifact"] == RESULTS[1].proposal.artifact
    assert date.fromisoformat(first["decision"]["expires_on"]) - today == timedelta(days=30)
    assert first["preferences"] is None
    # pair 1: the candidate is A; pair 2: it is B, so A is the source
    assert second["preferences"] == {"source": 1, "candidate": 1, "ties": 1}
    assert (second["number"], second["previous"]) == (2, first["digest"])

    shown = json.loads(world.call("show", run_id, "--json"))
    assert [entry["decision"]["decision"] for entry in shown["decisions"]] == ["approve", "reject"]
    assert "reject by Ada" in world.call("show", run_id)
    tags = world.tracking.client.get_run(run_id).data.tags
    assert tags["keiryo.decision"] == tags["keiryo.decision.0002"]
    assert "candidate in 1, 1 tied" in tags["keiryo.decision"]
    assert tags["keiryo.decision.0001"].startswith("approve by Ada")

    # an entry that was changed behind the log's back is found
    entry = world.store.home / "results" / f"spot-check-decision-{run_id}-0001.json"
    stored = json.loads(entry.read_text(encoding="utf-8"))
    stored["record"]["decision"]["decision"] = "reject"
    entry.write_text(
        json.dumps({"record": stored["record"], "sha256": digest_of(stored["record"])}), encoding="utf-8"
    )
    assert "entry 2 is not what was appended" in world.call("show", run_id, code=1)

    # the review verbs look where they are told, by option or environment, and nowhere else
    embedded = CliRunner().invoke(app, ["runs", "--json"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    served = CliRunner().invoke(app, ["runs", "--json"])
    assert json.loads(embedded.output) == []
    assert [row["run_id"] for row in json.loads(served.output)] == [run_id]


def test_what_cannot_be_decided_is_refused_in_one_line(world: Decided) -> None:
    run_id = world.log({"spot_check.jsonl": SHEET})
    signed = ("--by", "Ada", "--reason", "harmless")
    for arguments, said in (
        (("--by", " ", "--reason", "x"), "--by ' ': must not be empty"),
        (("--by", "Ada", "--reason", ""), "--reason '': must not be empty"),
        ((*signed, "--days", "400"), "must lie in 1 to 90"),
        ((*signed, "--days", "0"), "must lie in 1 to 90"),
        ((*signed, "--sheet", str(world.root / "absent.jsonl")), "cannot be read"),
        ((*signed, "--sheet", str(world.sheet("A", "B"))), "no label for pair 3"),
    ):
        output = world.call("approve", run_id, *arguments, code=2)
        assert said in output
        assert output.count("\n") == 1
    # without the key nothing can be unblinded, and nothing is recorded
    complete = str(world.sheet("A", "B", "tie"))
    assert "the key of the blinded pairs is not in" in world.call(
        "approve", run_id, *signed, "--sheet", complete, code=1
    )
    assert json.loads(world.call("show", run_id, "--json"))["decisions"] == []
    bare = world.log({})
    assert "has no blinded pairs" in world.call("approve", bare, *signed, code=2)
