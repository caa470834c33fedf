"""Which errors are the user's input (exit code 2) and which are failures we foresee (exit code 1).

Everything else is a defect and keeps its traceback.
"""

import sys


def bad_input() -> tuple[type[Exception], ...]:
    """Errors in a configuration, a model, data, tasks, or an identifier on the command line.

    In a stage a QualityError makes the verdict ERROR; here it comes from the preparation, before anything ran.
    """
    from configs.load import ConfigError
    from tasks.behaviour.error import BehaviourError
    from tasks.data.text_error import TextError
    from tasks.data.training_rows import DataError
    from tasks.judging.error import DecisionError, LabelError
    from tasks.models.errors import ModelSourceError
    from tasks.quality.planning import PlanError
    from tasks.quality.quality_error import QualityError
    from tasks.serving.trace import TraceError

    kinds: tuple[type[Exception], ...] = (
        BehaviourError,
        ConfigError,
        DataError,
        DecisionError,
        LabelError,
        ModelSourceError,
        PlanError,
        QualityError,
        TextError,
        TraceError,
    )
    # The registry and run look-ups import mlflow; without it loaded none of their errors can have been raised.
    if "mlflow" in sys.modules:
        from tasks.tracking.query import UnknownRun
        from tasks.tracking.registry import UnknownRelease

        kinds += (UnknownRun, UnknownRelease)
    return kinds


def expected_failures() -> tuple[type[Exception], ...]:
    """Failures of the store, an engine, tracking or a server that the message explains."""
    from tasks.engines.protocol import EngineError
    from tasks.store.errors import StoreError

    kinds: tuple[type[Exception], ...] = (EngineError, StoreError)
    if "flows.deployment" in sys.modules:
        from flows.deployment import ServerError

        kinds += (ServerError,)
    if "mlflow" in sys.modules:
        from tasks.tracking.query import OtherVersion, RolloutUnfinished
        from tasks.tracking.store import TrackingError

        kinds += (OtherVersion, RolloutUnfinished, TrackingError)
    return kinds
