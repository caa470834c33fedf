"""The HTTP side: OpenAI's routes over an open engine, health and metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from configs.serve import ServeLimits
from tasks.endpoint.admission import Admission
from tasks.endpoint.answer import answer
from tasks.endpoint.api_error import ApiError
from tasks.endpoint.completion_request import stream_request
from tasks.endpoint.engine_process import EngineLink
from tasks.endpoint.incoming import check_key, read_body, unless_hung_up
from tasks.endpoint.metrics import Metrics
from tasks.endpoint.openai_api import Answer, ChatRequest, CompletionRequest, ModelCard, ModelList
from tasks.endpoint.prompt_text import PromptText
from tasks.endpoint.reply import Reply
from tasks.endpoint.streams import Streams


class Endpoint:
    """One served release.

    Attributes:
        admission: who may enter.
        streams: the requests in flight.
        metrics: what is counted.
        card: of the release.
        cards: of the release and its adapters, by name.
    """

    def __init__(
        self,
        model: str,
        fingerprint: str,
        text: PromptText,
        link: EngineLink,
        limits: ServeLimits,
        adapters: Iterable[str] = (),
    ) -> None:
        """Serve `model` under its name, and its adapters under theirs; `fingerprint` tells releases of it apart."""
        self.admission = Admission(limits, link.opened.slots)
        self.streams = Streams(link, limits.retry_after_s)
        self.metrics = Metrics(self.streams)
        created = int(time.time())
        self.card = ModelCard(id=model, created=created)
        self.cards = {name: ModelCard(id=name, created=created) for name in (model, *adapters)}
        self._fingerprint = fingerprint
        self._text = text
        self._engine = link.opened
        self._limits = limits

    async def complete(self, request: Request, form: type[CompletionRequest] | type[ChatRequest]) -> Response:
        """Answer one request, whole or as events.

        Raises:
            ApiError: it ends otherwise; 499 where the client hung up.
        """
        asked_at = asyncio.get_running_loop().time()
        deadline = asked_at + self._limits.request_s
        body = await read_body(request, form, self._limits, deadline)
        self.card_of(body.model)
        async with AsyncExitStack() as held:
            held.enter_context(self.admission.enter())
            asked = await asyncio.to_thread(stream_request, body, self._text, self._limits, self._engine)
            if body.model != self.card.id:
                asked = replace(asked, adapter=body.model)
            reply = Reply(
                chat=form is ChatRequest,
                stream=bool(body.stream),
                model=body.model,
                fingerprint=self._fingerprint,
                created=int(time.time()),
                prompt_tokens=len(asked.generation.prompt),
            )
            pieces = answer(
                self.streams, asked, self._text, stops=body.stops, deadline=deadline, metrics=self.metrics
            )
            await held.enter_async_context(aclosing(pieces))
            if not body.stream:
                whole: Answer = await unless_hung_up(request, reply.whole(pieces))
                self.count(request, 200, asked_at)
                return Response(whole.model_dump_json(), media_type="application/json")
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = reply.events(pieces, with_usage=usage)
            await held.enter_async_context(aclosing(events))
            first = await unless_hung_up(request, anext(events))
            held.callback(lambda: self.count(request, reply.status, asked_at))
            return EventStream(first, events, held.pop_all())

    def card_of(self, name: str) -> ModelCard:
        """The card of the release or of an adapter.

        Raises:
            ApiError: 404, no such name is served.
        """
        if name not in self.cards:
            served = ", ".join(map(repr, self.cards))
            message = (
                f"model: {name!r} is not served here; {served} {'is' if len(self.cards) == 1 else 'are'}"
            )
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.cards[name]

    def count(self, request: Request, status: int, asked_at: float | None = None) -> None:
        """Count a request that has ended."""
        route = getattr(request.scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, str(status)).inc()
        if asked_at is not None:
            self.metrics.request_s.observe(asyncio.get_running_loop().time() - asked_at)

    def health(self) -> tuple[int, str]:
        """Status and word: the engine lives and the server takes requests, or which of the two is not so."""
        if self.streams.failure is not None:
            return 503, f"failed: {self.streams.failure}"
        return (503, "stopping") if self.admission.stopping else (200, "ok")


class EventStream(StreamingResponse):
    """Server-sent events that hold a place in the engine until the last one is out or the client is gone."""

    def __init__(self, first: str, rest: AsyncIterator[str], held: AsyncExitStack) -> None:
        """Send `first`, then the rest; `held` is given back at the end."""
        super().__init__(
            _chained(first, rest), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; starlette stops when the client hangs up."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in rest:
        yield event


def build_app(endpoint: Endpoint, api_key: str | None) -> FastAPI:
    """The routes. Those under /v1 want the key where there is one."""

    def key(authorization: Annotated[str | None, Header()] = None) -> None:
        check_key(authorization, api_key)

    # No pages of documentation: they would load their scripts from elsewhere.
    app = FastAPI(openapi_url=None)
    app.include_router(_openai_routes(endpoint, key))

    @app.get("/health")
    async def health() -> JSONResponse:
        status, word = endpoint.health()
        return JSONResponse({"status": word, "model": endpoint.card.id}, status)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(endpoint.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        endpoint.count(request, error.status)
        return JSONResponse(error.body.model_dump(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return await refused(request, ApiError(error.status_code, f"{request.url.path}: {error.detail}"))

    @app.exception_handler(500)
    async def defect(request: Request, _: Exception) -> Response:
        message = "a defect of the server; its log has the traceback"
        return await refused(request, ApiError(500, message, kind="server_error"))

    return app


def _openai_routes(endpoint: Endpoint, key: Any) -> APIRouter:
    routes = APIRouter(prefix="/v1", dependencies=[Depends(key)])

    @routes.post("/completions")
    async def completions(request: Request) -> Response:
        return await endpoint.complete(request, CompletionRequest)

    @routes.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await endpoint.complete(request, ChatRequest)

    @routes.get("/models")
    async def models() -> ModelList:
        return ModelList(data=list(endpoint.cards.values()))

    @routes.get("/models/{name}")
    async def model(name: str) -> ModelCard:
        return endpoint.card_of(name)

    return routes
