"""The files of a stage's run: its result, the per-sample results, the forest of its gate, the samples that changed most."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tasks.quality.changed_most import ChangedItem, changed_most
from tasks.quality.samples import Samples
from tasks.release.stage_result import StageResult
from tasks.tracking.parquet import write_samples
from tasks.tracking.store import Tracking

CHANGED_MOST = "changed_most.json"
FOREST = "gate-forest.svg"
_DIGITS = 4  # of nats, for people; the samples have them all
# MLflow's table shows about four columns before it scrolls.
_COLUMNS = ("task", "change", "prompt", "target", "source", "candidate", "change_nats", "metric", "item")


def log_stage_files(
    tracking: Tracking, stage_run: str, result: StageResult, samples: Mapping[str, Samples]
) -> None:
    """Log everything of a stage that is a file; `samples` by role, "reference" and "candidate"."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root, "result.json", result.model_dump_json(indent=2))
        for name, text in result.text.items():
            write_text(root / "text", name, text)
        for name, each in samples.items():
            path = _inside(root / "samples", f"{name}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_samples(each, path)
        if result.gate is not None and result.gate.metrics:
            # Drawing takes a second to import, and `keiryo runs` comes by here, too.
            from tasks.report.figures import draw_forest

            write_text(root / "figures", FOREST, standalone(draw_forest([result])))
        tracking.client.log_artifacts(stage_run, folder)
    if "reference" in samples and "candidate" in samples:
        _log_changed(tracking, stage_run, changed_most(samples["reference"], samples["candidate"]))


def read_changed(tracking: Tracking, stage_run: str) -> tuple[ChangedItem, ...]:
    """The samples that changed most, as they were logged; none where both models answered alike."""
    if CHANGED_MOST not in {item.path for item in tracking.client.list_artifacts(stage_run)}:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(tracking.client.download_artifacts(stage_run, CHANGED_MOST, folder))
        table = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        ChangedItem.model_validate(dict(zip(table["columns"], row, strict=True))) for row in table["data"]
    )


def standalone(svg: str) -> str:
    """A figure as a file of its own: ink and paper are fixed, as no page gives them one."""
    return svg.replace("<svg ", '<svg style="color: #1b1f24; background: #ffffff" ', 1)


def write_text(folder: Path, name: str, text: str) -> None:
    """Write a file below a folder.

    Raises:
        ValueError: the name leads out of the folder.
    """
    path = _inside(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _inside(folder: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"artifact name {name!r} leads out of its folder; use a relative name")
    return folder / name


def _log_changed(tracking: Tracking, stage_run: str, rows: tuple[ChangedItem, ...]) -> None:
    """As a table of MLflow's, which its UI shows and searches as one."""
    if not rows:
        return
    columns = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
    columns["change_nats"] = [
        None if row.change_nats is None else round(row.change_nats, _DIGITS) for row in rows
    ]
    tracking.client.log_table(stage_run, columns, CHANGED_MOST)
