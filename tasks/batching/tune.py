"""The batching stage: scheduler settings searched on the load, and the best one judged on speed and on quality.

The artifact does not change, so its scores stand: quality is scored through the served graph with the served cache type, which
the scheduler does not touch, and the gate is answered from the same samples. Threads are part of their key: what is proposed with
others is scored with them. A prefix cache is checked apart, token by token.
What may change is speed: the search picks, and fresh interleaved pairs, which the pick has not seen, must show more than the
configured gain, interval included.
"""

import math
from collections.abc import Mapping, Sequence

from configs.schema import BatchingSettings
from tasks.batching.contest import Contest, compare_under_load
from tasks.batching.halving import Search, search
from tasks.batching.prefix_check import check_prefix_cache
from tasks.batching.reporting import comparison_metrics, gain_metrics, policy_csv, policy_metrics, search_csv
from tasks.batching.schedule import Schedule, measure_schedule
from tasks.batching.speed_gate import SpeedVerdict, judge_speed
from tasks.profiling.memory_budget import serving_budget
from tasks.release.candidate import Candidate
from tasks.release.judging import judge_candidate
from tasks.release.measuring import MIB, measure_candidate, open_candidate, prompt_tokens
from tasks.release.quiet import quiet
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.store.record import Record


class Outcome(Record):
    """What became of the settings.

    Attributes:
        options: all that were declared, by name.
        refused: why some were not tried, or not proposed though they were the best, by name.
        failed: why some did not run, by name.
        found: the search; None where nothing was tried.
        speed: the verdict on the best; None where there is none.
        best: the proposal; None where there is none.
    """

    options: dict[str, Candidate]
    refused: dict[str, str]
    failed: dict[str, str]
    found: Search | None = None
    speed: SpeedVerdict | None = None
    best: Candidate | None = None


def tune_batching(workspace: Workspace, settings: BatchingSettings, release: Candidate) -> StageResult:
    """Search the scheduler settings, compare static with continuous batching, propose the best where it is faster.

    Raises:
        EngineError: the release itself does not run any more.
        QualityError, StoreError: the verdict could not be reached.
    """
    load = workspace.config.load
    outcome = _searched(workspace, settings, release)
    best, speed = outcome.best, outcome.speed
    compared = None if load is None else compare_under_load(workspace, load, release, best)
    schedules = _policies(workspace, [release, *outcome.options.values()])
    result = StageResult(
        stage="batching",
        verdict="FAIL",
        kept=False,
        reason=_nothing_proposed(outcome),
        proposal=best,
        measurement=measure_candidate(workspace, best) if best else None,
        candidates=_results(workspace, outcome),
        load=compared,
        metrics=policy_metrics(workspace, release, schedules)
        | gain_metrics(speed, outcome.found, load is not None)
        | comparison_metrics(workspace, compared, best or release),
        text={"static_against_continuous.csv": policy_csv(schedules)}
        | ({"search.csv": search_csv(outcome.found)} if outcome.found else {}),
    )
    if best is None or speed is None:
        broken = outcome.found is not None and not outcome.found.tried
        return result.model_copy(update={"verdict": "ERROR"}) if broken else result
    said = f"{best.name}: {speed.figures}, against {release.name}"
    if speed.verdict != "PASS":
        return result.model_copy(update={"verdict": speed.verdict, "reason": said})
    judged = judge_candidate(workspace, best, "preserve")
    return result.model_copy(
        update={
            "verdict": judged.verdict,
            "kept": judged.verdict == "PASS",
            "gate": judged.gate,
            "samples": judged.samples,
            "provisional": judged.provisional,
            "metrics": result.metrics | judged.metrics,
            "text": result.text | judged.text,
            "reason": f"{said}; {judged.reason}",
        }
    )


def scheduler_options(release: Candidate, settings: BatchingSettings) -> dict[str, Candidate]:
    """The settings to try, by name; the release's own is what they are compared with."""
    options = {}
    for scheduler in settings.tried:
        name = (
            f"{release.name}, {scheduler.max_num_seqs} sequences, {scheduler.max_num_batched_tokens} tokens a step"
            f"{', prefix cache' if scheduler.prefix_caching else ''}{'' if scheduler.split_prefill else ', whole prompts'}"
            f"{'' if scheduler.cache_mib == release.engine.scheduler.cache_mib else f', {scheduler.cache_mib} MiB cache'}"
            f"{'' if scheduler.threads is None else f', threads {scheduler.threads}'}"
        )
        engine = release.engine.model_copy(update={"scheduler": scheduler})
        if engine != release.engine:
            options[name] = release.model_copy(update={"name": name, "engine": engine})
    return options


def _too_large(workspace: Workspace, options: dict[str, Candidate]) -> dict[str, str]:
    """Settings whose predicted peak, the cache's whole pool in use, is above the goal; with the reason."""
    limit_mib = workspace.config.goals.max_peak_mib
    if limit_mib is None:
        return {}
    predicted = {
        name: serving_budget(workspace.architecture, each.format, each.engine, workspace.config.requests)
        for name, each in options.items()
    }
    return {
        name: f"would take {budget.endless_bytes / MIB:.0f} MiB, goals.max_peak_mib is {limit_mib:g}"
        for name, budget in predicted.items()
        if budget.endless_bytes / MIB > limit_mib
    }


def _one_pool(release: Candidate, options: dict[str, Candidate]) -> dict[str, str]:
    """Settings with threads of their own on an engine that shares one pool with whatever else runs in a process."""
    if release.engine.engine != "transformers":
        return {}
    reason = "scheduler.threads: engine: transformers computes on the threads of its process; set threads of the recipe"
    return {name: reason for name, each in options.items() if each.engine.scheduler.threads is not None}


def _searched(workspace: Workspace, settings: BatchingSettings, release: Candidate) -> Outcome:
    """Search, then judge the best on pairs that chose nothing."""
    options = scheduler_options(release, settings)
    refused = _too_large(workspace, options) | _one_pool(release, options)
    usable = {name: option for name, option in options.items() if name not in refused}
    if not usable:
        return Outcome(options=options, refused=refused, failed={})
    with quiet(workspace.store), Contest(workspace, release, usable) as contest:
        found = search(list(usable), settings.tuning, contest.pairs)
        best: Candidate | None = None
        for tried in found.tried:
            best = usable[tried.name]
            if (changed := _prefix_cache_changes(workspace, best)) is None:
                break
            refused[best.name], best = changed, None
        outcome = Outcome(options=options, refused=refused, failed=contest.failed, found=found, best=best)
        if best is None:
            return outcome
        pairs = contest.decisive_pairs(best, 2 * settings.gate_blocks)
    return outcome.model_copy(update={"speed": judge_speed(pairs, settings.min_gain, settings.confidence)})


def _prefix_cache_changes(workspace: Workspace, best: Candidate) -> str | None:
    """Why a setting with a prefix cache must not be proposed; None where it may."""
    scheduler = best.engine.scheduler
    if not scheduler.prefix_caching:
        return None
    without = best.engine.model_copy(
        update={"scheduler": scheduler.model_copy(update={"prefix_caching": False})}
    )
    plain = best.model_copy(update={"engine": without})
    with open_candidate(workspace, plain) as one, open_candidate(workspace, best) as other:
        check = check_prefix_cache(one, other, prompt_tokens(workspace))
    return f"the prefix cache changed {check.changed} of {check.answers} answers" if check.changed else None


def _results(workspace: Workspace, outcome: Outcome) -> tuple[CandidateResult, ...]:
    """Every setting with what became of it."""
    tried = {each.name: each for each in outcome.found.tried} if outcome.found else {}
    results = []
    for name, option in outcome.options.items():
        proposed, dropped = option == outcome.best, outcome.refused.get(name)
        metrics: dict[str, float] = {}
        if name in tried:
            ratios = tried[name].log_ratios
            metrics = {
                "perf/search_ratio": math.exp(tried[name].mean),
                "perf/search_pairs": float(len(ratios)),
            }
            if not proposed and dropped is None:
                dropped = f"given up after round {tried[name].rounds} of the search"
        results.append(
            CandidateResult(
                name=name,
                candidate=option,
                measurement=measure_candidate(workspace, option) if proposed else None,
                error=outcome.failed.get(name),
                dropped=dropped,
                metrics=metrics,
            )
        )
    return tuple(results)


def _nothing_proposed(outcome: Outcome) -> str:
    """Why there is no proposal."""
    reasons: Mapping[str, str] = outcome.failed | outcome.refused
    if reasons:
        told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        return f"no scheduler setting can be proposed ({told})"
    return "the only setting to try is the release's own; add others to batching.schedulers or batching.grid"


def _policies(workspace: Workspace, candidates: Sequence[Candidate]) -> tuple[Schedule, ...]:
    """Static against continuous batching on the first setting with fewer slots than requests; with more they are the same."""
    count = workspace.config.requests.count
    for candidate in candidates:
        if 1 < candidate.engine.scheduler.max_num_seqs < count:
            with quiet(workspace.store), open_candidate(workspace, candidate) as engine:
                return (measure_schedule(engine, workspace.config.requests, prompt_tokens(workspace)),)
    return ()
