"""What a client is told when its request cannot be answered, in OpenAI's error format."""

from typing import Literal

from pydantic import BaseModel

Kind = Literal["invalid_request_error", "authentication_error", "server_error", "timeout_error"]


class ErrorDetail(BaseModel):
    """The inside of OpenAI's error object."""

    message: str
    type: Kind
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error object, the body of every status above 399."""

    error: ErrorDetail


class ApiError(Exception):
    """A request ends with this status.

    Attributes:
        status: HTTP status.
        body: what the client reads.
        headers: of the response, for example Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: Kind = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Describe it; the message names the field or limit, its value and the way out."""
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))
        self.headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
