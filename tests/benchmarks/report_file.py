"""The files that `make bench` writes: docs/bench/PART.json with every raw figure, PART.md to read."""

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from scipy import stats

from tasks.profiling.environment import environment
from tasks.store.digest import library_versions

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "bench"
LIBRARIES = ("prefect", "mlflow", "torch", "transformers", "openvino", "onnxruntime")


def row(name: str, work: str, unit: str, runs: Sequence[float]) -> dict[str, object]:
    """One measured thing: median, and the 95 % interval of the median by the sign test (order statistics)."""
    ordered = sorted(runs)
    rank = max(int(stats.binom.ppf(0.025, len(ordered), 0.5)), 1)
    low, high = ordered[rank - 1], ordered[-rank]
    return {"name": name, "work": work, "unit": unit, "median": statistics.median(runs), "ci_low": low,
            "ci_high": high, "runs": list(runs)}  # fmt: skip


def write(
    part: str,
    rows: Sequence[Mapping[str, object]],
    ratios: Mapping[str, Mapping[str, float]],
    raw: Mapping[str, object] = {},
) -> Path:
    """Write both files, raw tables into the JSON alone; returns the readable one."""
    document = {
        "part": part, "machine": environment(), "date": datetime.now(UTC).date().isoformat(),
        "versions": library_versions(*LIBRARIES), "rows": list(rows), "ratios": dict(ratios),
        **raw,
    }  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {part}", "", ", ".join(f"{k} {v}" for k, v in environment().items()), "",
             "| what | work | unit | median | 95 % interval | runs |", "|---|---|---|---:|---|---:|"]  # fmt: skip
    lines += [
        f"| {r['name']} | {r['work']} | {r['unit']} | {r['median']:.3g} | {_interval(r)} | {len(r['runs'])} |"  # type: ignore[arg-type]
        for r in rows
    ]
    lines += [
        "",
        *(
            f"- {name}: {v['median']:.3g} ({v['ci_low']:.3g} to {v['ci_high']:.3g})"
            for name, v in ratios.items()
        ),
        "",
    ]
    path = FOLDER / f"{part}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _interval(row: Mapping[str, object]) -> str:
    return "" if len(row["runs"]) == 1 else f"{row['ci_low']:.3g} to {row['ci_high']:.3g}"  # type: ignore[arg-type]
