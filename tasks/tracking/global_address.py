"""MLflow's one address of a process, for the calls that take no client."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow

_VARIABLE = "MLFLOW_TRACKING_URI"


@contextmanager
def global_address(uri: str) -> Iterator[None]:
    """Set the address, and put the environment back as it was after that.

    MLflow writes the address into the environment, too, where child processes and the next verb would take it for the user's choice.
    """
    chosen = os.environ.get(_VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        if chosen is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = chosen
