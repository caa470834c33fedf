"""A judge behind an OpenAI-compatible chat endpoint (vLLM, OpenVINO Model Server, llama.cpp, a provider)."""

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self
from urllib.parse import urlsplit

import httpx

from configs.behaviour import EndpointJudge, is_loopback
from tasks.judging.error import JudgeError
from tasks.judging.family import families_of
from tasks.judging.judge import Comparison, Preference, parse_preference, question

MAX_PAUSE_S = 60.0
MAX_ERROR_CHARACTERS = 200
_PRINTABLE = re.compile(r"[!-~]+")


class ChatEndpoint:
    """Asks one model at temperature 0. Use as a context manager, or call `close`."""

    def __init__(self, settings: EndpointJudge) -> None:
        """Read the key; nothing is sent yet.

        Raises:
            JudgeError: the key's environment variable is not set.
        """
        self.name = f"{settings.model} at {settings.base_url}"
        self.families = families_of(settings.model) | families_of(settings.family or "", declared=True)
        self._settings = settings
        self._key = _key(settings.api_key_env)
        self._client = httpx.Client(
            timeout=settings.timeout_s,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            follow_redirects=False,  # the key must not travel to another host
            trust_env=not is_loopback(urlsplit(settings.base_url)),  # no proxy to this machine
        )

    def compare(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """See `Judge.compare`."""
        with ThreadPoolExecutor(self._settings.parallel) as pool:
            replies = [pool.submit(partial(self._reply, question(each))) for each in comparisons]
            try:
                return [parse_preference(reply.result()) for reply in replies]
            except JudgeError:
                pool.shutdown(cancel_futures=True)  # one that is down fails every request after long pauses
                raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self, text: str) -> str:
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": self._settings.max_new_tokens,
        }
        failure = ""
        for attempt in range(self._settings.retries + 1):
            pause_s = min(self._settings.backoff_s * 2**attempt, MAX_PAUSE_S)
            try:
                response = self._client.post(f"{self._settings.base_url}/chat/completions", json=body)
            except httpx.RequestError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == httpx.codes.OK:
                    return self._content(response)
                failure = f"HTTP {response.status_code}: {self._excerpt(response)}"
                if response.status_code != httpx.codes.TOO_MANY_REQUESTS and not response.is_server_error:
                    break
                pause_s = max(pause_s, _retry_after_s(response))
            if attempt < self._settings.retries:
                time.sleep(pause_s)
        raise JudgeError(
            f"{self.name} gave no reply: {failure}; check judge.provider, or leave the judge out"
        )

    def _content(self, response: httpx.Response) -> str:
        """The reply's text; "" where the model said nothing."""
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise JudgeError(
                f"{self.name} answered with no chat completion: {self._excerpt(response)}; "
                "base_url must be that of an OpenAI-compatible server, with its /v1"
            ) from error
        if content is not None and not isinstance(content, str):
            raise JudgeError(f"{self.name}: choices[0].message.content is no text: {self._excerpt(response)}")
        return content or ""

    def _excerpt(self, response: httpx.Response) -> str:
        """The beginning of a body, without the key that a server may repeat."""
        text = response.text.replace(self._key, "[key]") if self._key else response.text
        return text[:MAX_ERROR_CHARACTERS]


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeError(
            f"judge.provider.api_key_env: the environment variable {variable} is not set; set it to the API key"
        )
    if not _PRINTABLE.fullmatch(key):  # the HTTP library would refuse it with the key in its message
        raise JudgeError(
            f"judge.provider.api_key_env: the value of {variable} has characters that no HTTP header carries; "
            "set it to the API key alone"
        )
    return key


def _retry_after_s(response: httpx.Response) -> float:
    """The pause that the server asks for, in seconds, at most a minute; 0 where it asks for none."""
    asked = response.headers.get("retry-after", "")
    return min(float(asked), MAX_PAUSE_S) if asked.isdigit() else 0.0
