"""`keiryo plan` and `keiryo doctor`: what can be said before anything runs."""

import logging
from collections.abc import Sequence
from pathlib import Path

from configs.load import load_config
from configs.schema import Config
from flows.offline import prepare_environment
from tasks.engines.availability import Availability, probe
from tasks.quantization.preflight import preflight
from tasks.release.plan import Plan, make_plan
from tasks.release.preparation import make_workspace
from tasks.release.stage_result import StageResult
from tasks.store.store import store_home

logger = logging.getLogger(__name__)


def plan(config: Path, overrides: Sequence[str]) -> Plan:
    """Budget, samples and recommended stack of a configuration.

    Raises:
        ConfigError, ModelSourceError, TextError, PlanError: the input cannot be used, or no candidate fits this machine.
    """
    settings = load_config(config, overrides)
    prepare_environment(store_home(), hub=settings.needs_hub, threads=settings.threads)
    workspace = make_workspace(settings)
    return make_plan(workspace, _measured(settings), preflight(workspace))


def _measured(settings: Config) -> tuple[StageResult, ...]:
    """Stages of the newest rollout of this model that has a verdict; none where nothing was tracked yet."""
    from tasks.tracking import query
    from tasks.tracking.store import open_tracking

    tracking = open_tracking(settings.tracking)
    decided = [row for row in query.list_runs(tracking, settings.model.name) if row.verdict is not None]
    if not decided:
        return ()
    try:
        return query.load_results(tracking, query.load_run(tracking, decided[0].run_id))
    except query.OtherVersion as error:
        logger.warning("planned without measurements: %s", error)
        return ()


def doctor() -> Availability:
    """Which engines work here."""
    prepare_environment(store_home(), hub=False, threads=1)
    return probe()
