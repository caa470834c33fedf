"""`keiryo plan` and `keiryo doctor`: what can be said before anything runs."""

from collections.abc import Sequence
from pathlib import Path

from configs.load import load_config
from flows.offline import prepare_environment
from tasks.engines.availability import Availability, probe
from tasks.release.plan import Plan, make_plan
from tasks.store.store import store_home


def plan(config: Path, overrides: Sequence[str]) -> Plan:
    """Budget, samples and recommended stack of a configuration.

    Raises:
        ConfigError, ModelSourceError, TextError, PlanError: the input cannot be used.
    """
    settings = load_config(config, overrides)
    prepare_environment(store_home(), hub=settings.model.source.kind == "hub", threads=settings.threads)
    return make_plan(settings)


def doctor() -> Availability:
    """Which engines work here."""
    prepare_environment(store_home(), hub=False, threads=1)
    return probe()
