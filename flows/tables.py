"""Records as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.engines.availability import Availability
from tasks.quantization.preflight import Preflight
from tasks.release.history import HistoryEntry
from tasks.release.plan import Plan
from tasks.release.summary import MetricComparison, RolloutSummary, StageSummary
from tasks.tracking.query import RunRow

console = Console(highlight=False, soft_wrap=False)
COLOURS = {"PASS": "green", "FAIL": "red", "ERROR": "red", "INCONCLUSIVE": "yellow", "SKIPPED": "dim"}


def summary(found: RolloutSummary) -> None:
    """A rollout: one row a stage, then the release and where to read on."""
    table = _table(
        "stage",
        "verdict",
        "kept",
        "weights MiB",
        "one stream tok/s",
        "batched tok/s",
        "KL nats",
        "s",
        "reason",
    )
    for stage in found.stages:
        table.add_row(
            stage.stage,
            _coloured(stage.verdict),
            "yes" if stage.kept else "",
            _metric(stage, "mem/weights_mib", ".0f"),
            _metric(stage, "perf/decode_tokens_per_s", ".0f"),
            _metric(stage, "perf/throughput_tokens_per_s", ".0f"),
            _metric(stage, "quality/kl_nats", ".4f"),
            "cached" if stage.cached else f"{stage.seconds:.0f}",
        )
    console.print(table)
    for stage in found.stages:
        console.print(f"[bold]{stage.stage}[/]: {escape(stage.reason)}", soft_wrap=True)
    release = f"{found.release.name}/{found.release.version}" if found.release else "nothing released"
    console.print(
        f"{_coloured(found.verdict)}  {found.config} on {found.model}: {escape(found.reason)}", soft_wrap=True
    )
    console.print(f"release: {release}   run: {found.run_id}   {found.seconds:.0f} s")
    if found.report:
        console.print(f"report:  {found.report}", soft_wrap=True)
    console.print("MLflow:  keiryo ui")


def runs(rows: Sequence[RunRow]) -> None:
    """All rollouts."""
    table = _table("run", "model", "config", "status", "verdict", "started (UTC)", "s")
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        verdict = _coloured(row.verdict) if row.verdict else ""
        table.add_row(row.run_id[:12], row.model, row.config, row.status, verdict, row.started[:19], seconds)
    console.print(table)


def comparison(rows: Sequence[MetricComparison]) -> None:
    """Two rollouts or stages."""
    table = _table("stage", "metric", "first", "second", "ratio")
    for row in rows:
        table.add_row(
            row.stage,
            row.metric,
            _with_interval(row.first, row.first_interval),
            _with_interval(row.second, row.second_interval),
            "" if row.ratio is None else f"{row.ratio:.3g}",
        )
    console.print(table)


def history(entries: Sequence[HistoryEntry]) -> None:
    """Moves of the champion."""
    table = _table("at (UTC)", "action", "from", "to", "stage", "artifact", "who", "reason")
    for entry in entries:
        table.add_row(
            entry.at[:19],
            entry.action,
            str(entry.from_version or ""),
            str(entry.to_version or ""),
            entry.stage or "",
            (entry.artifact or "")[:12],
            entry.who,
            entry.reason,
        )
    console.print(table)


def doctor(found: Availability) -> None:
    """The machine, its engines, and what the missing ones need."""
    machine = found.machine
    console.print(
        f"{machine.system}, Python {machine.python}; {' '.join(machine.cpu_features) or 'no fast instruction sets'}"
    )
    rates = found.rates
    speed = (
        f", multiplies at {rates.bf16_gflops:.0f} GFLOPS on one thread, f32 at {rates.f32_gflops:.0f}"
        if rates
        else ""
    )
    console.print(
        f"bf16 {'native' if machine.bf16 else 'not native'}{speed}; NVIDIA driver {'loaded' if machine.cuda else 'absent'}"
    )
    table = _table("engine", "works", "devices", "versions", "what it needs")
    for row in found.engines:
        versions = ", ".join(f"{name} {number}" for name, number in row.versions.items())
        lacking = f"{row.reason}: {row.needs}" if not row.works else ""
        works = "[green]yes[/]" if row.works else "[red]no[/]"
        table.add_row(row.engine, works, ", ".join(row.devices), versions, lacking)
    console.print(table)


def plan(found: Plan) -> None:
    """The preflight."""
    machine = _table("this machine", "")
    for name, value in found.machine.items():
        machine.add_row(name, value)
    console.print(machine)
    memory = _table(
        "engine",
        "weights",
        "KV cache",
        "context",
        "batch",
        "weights MiB",
        "KV MiB",
        "activations MiB",
        "total MiB",
    )
    for row in found.budgets:
        memory.add_row(
            row.engine, row.weights, row.kv_cache, str(row.context_tokens), str(row.batch), f"{row.weights_mib:.1f}",
            f"{row.kv_mib:.1f}", f"{row.activations_mib:.1f}", f"{row.total_mib:.0f}",
        )  # fmt: skip
    console.print(memory)
    if isinstance(found.quantize, Preflight):
        _candidates(found.quantize)
    if found.training:
        training = _table(
            "training", "arithmetic", "trained parameters", "memory saved by", "training peak MiB"
        )
        for need in found.training:
            training.add_row(
                need.method,
                need.arithmetic,
                f"{need.trained_parameters:,}",
                need.saving,
                f"{need.peak_mib:.0f}",
            )
        console.print(training)
    samples = _table(
        "task",
        "metric",
        "margin",
        "allowed",
        "expected",
        "power",
        "needed",
        "needed jointly",
        "smallest margin",
    )
    for metric in found.samples:
        samples.add_row(
            metric.task, metric.metric, f"{metric.margin:g}", f"{metric.chosen} {metric.unit}", f"{metric.expected:.0f}",
            f"{metric.power:.0%}",
            str(metric.needed or "> 1M"), str(metric.needed_jointly or "> 1M"),
            "" if metric.smallest_margin is None else f"{metric.smallest_margin:.3g}",
        )  # fmt: skip
    console.print(samples)
    stack = _table("aspect", "recommended", "because", "source")
    for advice in found.recommendations:
        stack.add_row(advice.aspect, advice.choice, advice.reason, advice.source)
    console.print(stack)
    console.print(
        f"joint power {found.joint_power:.0%}; disk {found.disk_mib:.0f} MiB; about {found.minutes:.0f} min"
    )


def _candidates(found: Preflight) -> None:
    """What each declared candidate takes, MiB; then what is refused, and why."""
    table = _table(
        "candidate", "weights", "KV", "activations", "serving peak", "build peak", "disk", "build s", "from"
    )
    for row in found.candidates:
        figures = (
            row.weights_mib,
            row.kv_mib,
            row.activations_mib,
            row.serving_mib,
            row.build_mib,
            row.disk_mib,
        )
        table.add_row(
            row.name, *(f"{figure:.0f}" for figure in figures), f"{row.seconds:.0f}", row.seconds_from
        )
    console.print(table)
    for number, said in enumerate(found.spaces):
        console.print(f"quantize.space.{number}: {said}; a search tries what is worth its time")
    cache = ", ".join(f"{size} bytes a token in {kind}" for kind, size in found.kv_token_bytes.items())
    console.print(f"KV cache: {cache}; {found.kv_factor:.0%} of one with a key for every query head")
    for row in found.candidates:
        if row.refused is not None:
            console.print(f"[red]refused[/] {escape(row.name)}: {escape(row.refused)}", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"


def _metric(stage: StageSummary, name: str, form: str) -> str:
    value = stage.metrics.get(name)
    return "" if value is None else format(value, form)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if interval is None else f"{value:.4g} ({interval[0]:.3g} to {interval[1]:.3g})"
