"""Whether an answer keeps the format that its prompt asks for. The whole answer must: prose around it breaks a parser."""

import json
import re

from tasks.behaviour.embedded_prompts import Format

_FENCE = re.compile(r"```(?:\w+)?\s*\n(.*?)\n?```", re.DOTALL)
_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\s?%?\.?")
_WORD = re.compile(r"['\"]?\w+(?:['\u2019-]\w+)*['\"]?[.!]?['\"]?")
_ITEM = re.compile(r"\s*(?:[-*\u2022\u30fb]|\d{1,3}[.)])\s*\S")
MIN_LIST_ITEMS = 2


def keeps_format(answer: str, expects: Format) -> bool:
    """Whether an answer is, as a whole, what was asked for.

    "json": an object or array, a code fence around it allowed. "number": one number. "word": one word. "list": at least two
    lines with a bullet or a number, and no more other lines than one that introduces them.
    """
    text = answer.strip()
    match expects:
        case "json":
            return _is_json(text)
        case "number":
            return bool(_NUMBER.fullmatch(text))
        case "word":
            return bool(_WORD.fullmatch(text))
        case "list":
            lines = [line for line in text.splitlines() if line.strip()]
            items = sum(bool(_ITEM.match(line)) for line in lines)
            return items >= MIN_LIST_ITEMS and len(lines) - items <= 1


def _is_json(text: str) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):  # also a number of too many digits
        return False
    return isinstance(value, dict | list)
