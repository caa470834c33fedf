"""The process in which one candidate is built and screened: reads a `ScreenRequest`, writes a `ScreenAnswer`."""

import logging
import sys

from tasks.quantization.fan_out import ScreenAnswer, ScreenRequest
from tasks.quantization.search import screen_one
from tasks.store.errors import StoreError


def main(text: str) -> None:
    """Answer the request that stands on standard input."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    request = ScreenRequest.model_validate_json(text)
    try:
        job = request.job
        answer = ScreenAnswer(result=screen_one(job.workspace(), job.declared, job.engine))
    except StoreError as error:
        answer = ScreenAnswer(store_error=" ".join(str(error).split()))
    request.answer.write_text(answer.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.stdin.read())
