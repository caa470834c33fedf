"""The base of every record that outlives a process."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen, typed value that travels between functions and is stored as JSON.

    Unknown fields are refused: a stored record of another shape is an error, never half-read. NaN and infinity are refused in
    every float field, so a broken measurement cannot become a metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
