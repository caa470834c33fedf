"""What people decided on a rollout, as tags of its runs: one tag a decision, and the newest under a name of its own."""

from mlflow.exceptions import MlflowException

from tasks.tracking.runs import children
from tasks.tracking.store import Tracking, TrackingError

NEWEST = "keiryo.decision"


def tag_decision(tracking: Tracking, rollout: str, stage: str, number: int, line: str) -> None:
    """Tag a rollout and the stage that was decided on.

    Raises:
        TrackingError: MLflow does not answer.
    """
    try:
        experiment = tracking.client.get_run(rollout).info.experiment_id
        stages = [
            run for run in children(tracking, experiment, rollout) if run.data.tags["keiryo.stage"] == stage
        ]
        for run_id in (rollout, *(run.info.run_id for run in stages)):
            tracking.client.set_tag(run_id, f"{NEWEST}.{number:04d}", line)
            tracking.client.set_tag(run_id, NEWEST, line)
    except MlflowException as error:
        raise TrackingError(
            f"the decision is in the store, but its tag could not be set: {error}; start the server and decide again"
        ) from error
