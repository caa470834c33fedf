"""The report of a rollout: one HTML file that asks the network for nothing."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tasks.quality.changed_most import ChangedItem
from tasks.quality.verdict import MetricVerdict
from tasks.release.evidence import Evidence
from tasks.release.ledger import Ledger, LedgerRow
from tasks.release.metrics import delta
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.report.figures import draw_figures, in_unit

_NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"


def render_report(
    evidence: Evidence,
    figures: dict[str, str] | None = None,
    changed: Mapping[str, Sequence[ChangedItem]] | None = None,
) -> str:
    """The whole report; every text of it is escaped.

    Args:
        evidence: what happened.
        figures: file name to SVG, to save drawing them twice.
        changed: stage to the samples that changed most; a stage without any is left out.
    """
    drawn = draw_figures(evidence) if figures is None else figures
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string(files("tasks.report").joinpath("report.html.j2").read_text(encoding="utf-8"))
    quality = evidence.config.quality
    return template.render(
        summary=evidence.summary,
        headline=headline(evidence),
        stages=[_stage_row(result) for result in evidence.results],
        gates=[(r, [_metric_row(metric) for metric in r.gate.metrics]) for r in evidence.results if r.gate],
        quality=quality,
        drawn_confidence=f"{1 - 2 * quality.alpha / quality.tries:.1%}",
        changed=[
            (stage, [_changed_row(row) for row in rows]) for stage, rows in (changed or {}).items() if rows
        ],
        ledger=evidence.ledger,
        ledger_rows=_ledger_rows(evidence.ledger) if evidence.ledger else [],
        candidates=[_candidate_rows(result) for result in evidence.results if result.candidates],
        texts=[(r.stage, name, text) for r in evidence.results for name, text in r.text.items()],
        environment=evidence.environment,
        config_yaml=yaml.safe_dump(evidence.config.model_dump(mode="json"), sort_keys=False),
        figures={name.removesuffix(".svg"): Markup(svg) for name, svg in drawn.items()},
    )


def headline(evidence: Evidence) -> str:
    """The outcome in one sentence."""
    summary, ledger = evidence.summary, evidence.ledger
    if summary.verdict != "PASS":
        return f"{summary.model}: {summary.verdict}. {summary.reason}."
    if summary.release is None:
        return f"{summary.model} stays as it is: {summary.reason}."
    gain = ""
    if ledger is not None:
        total = ledger.total
        mib = total.weights_mib_delta
        gain = (
            f" is {math.exp(total.decode_log_ratio):.3g}{_TIMES} as fast in one stream and"
            f" {math.exp(total.throughput_log_ratio):.3g}{_TIMES} with all requests in flight,"
            f" {abs(mib):.0f} MiB {'smaller' if mib < 0 else 'larger'}, and"
        )
    name = f"{summary.release.name}, version {summary.release.version},"
    return f"{name}{gain or ' is'} within every quality margin against the source model."


def _stage_row(result: StageResult) -> dict[str, str]:
    measurement = result.measurement
    speed, memory = (measurement.performance, measurement.memory) if measurement else (None, None)
    return {
        "stage": result.stage,
        "verdict": result.verdict,
        "kept": "kept" if result.kept else "skipped" if result.verdict == "SKIPPED" else "rolled back",
        "candidate": result.proposal.name if result.proposal else _NONE,
        "artifact": result.proposal.artifact[:12] if result.proposal else "",
        "decode": f"{speed.decode_tokens_per_s:.1f}" if speed else _NONE,
        "throughput": f"{speed.throughput_tokens_per_s:.1f}" if speed else _NONE,
        "weights": f"{memory.weights_mib:.0f}" if memory else _NONE,
        "peak": f"{memory.peak_mib:.0f}" if memory else _NONE,
        "seconds": f"{result.seconds:.0f} s{', from the store' if result.cached else ''}",
        "reason": result.reason,
    }


def _metric_row(metric: MetricVerdict) -> dict[str, str]:
    change, low, high = delta(metric)
    return {
        "name": f"{metric.task} {metric.metric}",
        "reference": _NONE if metric.reference is None else f"{metric.reference:.4g}",
        "candidate": f"{metric.candidate:.4g}",
        "change": in_unit(metric, change),
        "interval": f"[{in_unit(metric, low)}, {in_unit(metric, high)}]",
        "margin": _margin(metric),
        "alpha": f"{metric.alpha:.3g}",
        "items": f"{metric.items:,}",
        "clusters": f"{metric.clusters:,}",
        "needed": _NONE if metric.needed is None else f"{metric.needed:,}",
        "verdict": metric.verdict,
    }


def _changed_row(row: ChangedItem) -> dict[str, str]:
    return {
        "task": row.task,
        "item": row.item,
        "change": row.change,
        "nats": _NONE if row.change_nats is None else f"{row.change_nats:+.3f}",
        "prompt": row.prompt,
        "target": row.target,
        "source": row.source,
        "candidate": row.candidate,
    }


def _margin(metric: MetricVerdict) -> str:
    match metric.unit:
        case "fraction":
            return f"{_MINUS}{100 * metric.margin:.2g} pt"
        case "log ratio":
            return f"+{math.expm1(metric.margin):.2%}"
        case _:
            return f"{metric.margin:.4g} {metric.unit}"


def _ledger_rows(ledger: Ledger) -> list[dict[str, str]]:
    return [_ledger_row(row) for row in (*ledger.rows, ledger.total)]


def _ledger_row(row: LedgerRow) -> dict[str, str]:
    quality = row.quality
    return {
        "stage": row.stage,
        "decode": _speedup(row.decode_log_ratio, row.decode_ci),
        "decode_log": f"{row.decode_log_ratio:+.4f}",
        "throughput": _speedup(row.throughput_log_ratio, row.throughput_ci),
        "throughput_log": f"{row.throughput_log_ratio:+.4f}",
        "weights": f"{row.weights_mib_delta:+.0f}",
        "peak": f"{row.peak_mib_delta:+.0f}",
        "kl": _NONE if quality.kl_nats is None else f"{quality.kl_nats:+.4f}",
        "perplexity": _NONE if quality.perplexity_fraction is None else f"{quality.perplexity_fraction:+.2%}",
        "accuracy": _NONE if quality.accuracy is None else f"{100 * quality.accuracy:+.2f} pt",
        "seconds": f"{row.seconds:.0f}",
    }


def _speedup(log_ratio: float, interval: tuple[float, float]) -> str:
    return f"{math.exp(log_ratio):.3g}{_TIMES} [{math.exp(interval[0]):.3g}, {math.exp(interval[1]):.3g}]"


def _screened(result: CandidateResult, name: str) -> str:
    """A figure of the screen, with its interval where it has one."""
    low, high = (result.screen.get(f"{name}_ci_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{result.screen[name]:.4g}{interval}"


def _candidate_rows(result: StageResult) -> tuple[str, list[dict[str, str]]]:
    rows = []
    for each in result.candidates:
        measured = each.measurement
        proposed = each.candidate is not None and each.candidate == result.proposal
        rows.append(
            {
                "name": each.name,
                "proposed": "proposed" if proposed else "",
                "weights": f"{measured.memory.weights_mib:.0f}" if measured else _NONE,
                "peak": f"{measured.memory.peak_mib:.0f}" if measured else _NONE,
                "decode": f"{measured.performance.decode_tokens_per_s:.1f}" if measured else _NONE,
                "throughput": f"{measured.performance.throughput_tokens_per_s:.1f}" if measured else _NONE,
                "pair_ratio": _NONE if each.pair_ratio is None else f"{each.pair_ratio:.3g}{_TIMES}",
                "unpaired": each.unpaired or "",
                "screen": ", ".join(
                    f"{name} {_screened(each, name)}" for name in each.screen if "_ci_" not in name
                ),
                "error": each.error or "",
                "dropped": each.dropped or "",
            }
        )
    return result.stage, rows
