"""What comes in: the API key, the body within its limits, and whether the client is still there."""

import asyncio
import hmac
from collections.abc import Awaitable
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from configs.serve import ServeLimits
from tasks.endpoint.api_error import ApiError
from tasks.endpoint.openai_api import SharedFields

T = TypeVar("T")
Body = TypeVar("Body", bound=SharedFields)


class HungUp(ApiError):
    """The client is gone; nobody reads the answer."""

    def __init__(self) -> None:
        """Status 499, as web servers log it."""
        super().__init__(499, "the client hung up")


def check_key(authorization: str | None, key: str | None) -> None:
    """Compare in constant time.

    Args:
        authorization: the header's value.
        key: the server's key; None: everybody may ask.

    Raises:
        ApiError: 401.
    """
    if key is None:
        return
    given = (authorization or "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), key.encode()):
        raise ApiError(
            401,
            "wrong or missing API key; send it as `Authorization: Bearer KEY`",
            kind="authentication_error",
            code="invalid_api_key",
        )


async def read_body(request: Request, form: type[Body], limits: ServeLimits, deadline: float) -> Body:
    """Read and check the body.

    Raises:
        ApiError: 400 a field breaks a rule, 408 it came too slowly, 413 it is too large, 415 it is not JSON;
            HungUp: the client did not stay.
    """
    # A web page of another origin may send a form anywhere, but JSON only after asking, which nobody answers here.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send the body with `Content-Type: application/json`")
    body = bytearray()
    if int(request.headers.get("content-length", 0)) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout_at(deadline):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise ApiError(408, "the body took longer than limits.request_s", kind="timeout_error") from None
    except ClientDisconnect:
        raise HungUp from None
    try:
        return form.model_validate_json(bytes(body))
    except ValidationError as error:
        raise _broken_rule(error) from error


async def unless_hung_up(request: Request, work: Awaitable[T]) -> T:
    """Do the work, and cancel it when the client hangs up. The body has been read.

    Raises:
        HungUp: it did.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise HungUp
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(limits: ServeLimits) -> ApiError:
    return ApiError(413, f"the body is larger than limits.body_bytes, {limits.body_bytes} bytes; shorten it")


def _broken_rule(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    param = ".".join(map(str, first["loc"])) or None
    if first["type"] == "extra_forbidden":
        message = f"{param}: this server does not know this parameter; leave it out"
    elif param is None:
        message = f"the body is no request: {first['msg']}"
    else:
        message = f"{param}: {first['msg']}"
    return ApiError(400, message, param=param)
