"""Pieces of an answer as OpenAI's JSON: whole, or as server-sent events."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator

from tasks.endpoint.answer import Piece
from tasks.endpoint.api_error import ApiError
from tasks.endpoint.openai_api import (
    Answer,
    ChatChoice,
    Delta,
    DeltaChoice,
    FinishReason,
    Message,
    TextChoice,
    Usage,
)

DONE = "data: [DONE]\n\n"


class Reply:
    """The envelope of one answer.

    Attributes:
        status: HTTP status that tells how it went; 499, the client hung up, until it went otherwise.
    """

    def __init__(
        self, *, chat: bool, stream: bool, model: str, fingerprint: str, created: int, prompt_tokens: int
    ) -> None:
        """Name the model as the client did, and the release that answers by its fingerprint."""
        self.status = 499
        self._chat = chat
        self._object = "text_completion" if not chat else f"chat.completion{'.chunk' if stream else ''}"
        self._model = model
        self._fingerprint = fingerprint
        self._prompt_tokens = prompt_tokens
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = created
        self._made = 0

    async def whole(self, pieces: AsyncIterator[Piece]) -> Answer:
        """The answer in one body."""
        text: list[str] = []
        reason = None
        async for piece in pieces:
            text.append(piece.text)
            reason = piece.finish_reason
            self._made += piece.tokens
        self.status = 200
        if self._chat:
            message = Message(content="".join(text))
            return self._envelope([ChatChoice(message=message, finish_reason=reason)], self._usage())
        return self._envelope([TextChoice(text="".join(text), finish_reason=reason)], self._usage())

    async def events(self, pieces: AsyncIterator[Piece], *, with_usage: bool) -> AsyncGenerator[str, None]:
        """The answer as it comes, the first event with the first token.

        Raises:
            ApiError: before the first event. After it the status is out, and an error is an event.
        """
        started = False
        try:
            async for piece in pieces:
                self._made += piece.tokens
                if self._chat and not started:
                    yield _event(self._envelope([DeltaChoice(delta=Delta(role="assistant", content=""))]))
                if piece.text or piece.finish_reason or not started:
                    yield _event(self._piece(piece.text, piece.finish_reason))
                started = True
        except ApiError as error:
            if not started:
                raise
            self.status = error.status
            yield f"data: {error.body.model_dump_json()}\n\n"
            return
        if with_usage:
            yield _event(self._envelope([], self._usage()))
        self.status = 200
        yield DONE

    def _piece(self, text: str, reason: FinishReason | None) -> Answer:
        if self._chat:
            return self._envelope([DeltaChoice(delta=Delta(content=text), finish_reason=reason)])
        return self._envelope([TextChoice(text=text, finish_reason=reason)])

    def _envelope(
        self, choices: list[TextChoice] | list[ChatChoice] | list[DeltaChoice], usage: Usage | None = None
    ) -> Answer:
        return Answer(
            id=self._id,
            object=self._object,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._made,
            total_tokens=self._prompt_tokens + self._made,
        )


def _event(answer: Answer) -> str:
    return f"data: {answer.model_dump_json()}\n\n"
