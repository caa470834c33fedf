"""The prompts that both models answer: a JSONL file, or the embedded set."""

import json
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from configs.behaviour import BehaviourSettings
from tasks.behaviour.embedded_prompts import FORMATS, FREE, Format
from tasks.behaviour.error import BehaviourError
from tasks.data.lines import read_lines
from tasks.quality.intervals import MIN_ITEM_CLUSTERS, MIN_TEXT_CLUSTERS, effective_clusters
from tasks.store.record import Record

ROLES = ("system", "user", "assistant")
FIELDS = {"prompt", "messages", "id", "expects", "cluster"}


class Message(Record):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """One request.

    Attributes:
        id: unique in its set.
        messages: the chat so far; a plain prompt is one user message.
        expects: the format that the request asks for; None where it asks for none.
        cluster: prompts that share a template; the id itself where there is nothing to share.
    """

    id: str
    messages: tuple[Message, ...]
    expects: Format | None = None
    cluster: str

    @property
    def text(self) -> str:
        """What the user asked last."""
        return next(turn.content for turn in reversed(self.messages) if turn.role == "user")

    @property
    def transcript(self) -> str:
        """The whole chat as one text, the roles named where there is more than the user's one message."""
        if len(self.messages) == 1:
            return self.text
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.messages)


def prompts_of(settings: BehaviourSettings) -> tuple[Prompt, ...]:
    """The configured prompts, checked to be enough for every interval that will be drawn.

    Raises:
        BehaviourError: the file cannot be read, a line breaks the rule, or there are too few prompts.
    """
    embedded = settings.prompts == "embedded"
    prompts = embedded_prompts() if embedded else _read(Path(settings.prompts))
    clusters = len({prompt.cluster for prompt in prompts})
    if clusters < MIN_TEXT_CLUSTERS:
        raise BehaviourError(
            f"behaviour.prompts: {settings.prompts} has {len(prompts)} prompts in {clusters} clusters; an interval "
            f"needs {MIN_TEXT_CLUSTERS} clusters: add prompts, or leave 'cluster' out where they share no template"
        )
    _check_effective(prompts, f"{settings.prompts}")
    formatted = tuple(prompt for prompt in prompts if prompt.expects)
    if formatted:
        _check_effective(formatted, f"{settings.prompts}, prompts with 'expects'")
    elif settings.margins.max_format_loss is not None:
        raise BehaviourError(
            f"behaviour.margins.max_format_loss is set and no prompt of {settings.prompts} has 'expects'; "
            "say which formats are asked for, or leave the margin out"
        )
    return prompts


def embedded_prompts() -> tuple[Prompt, ...]:
    """128 prompts of 64 templates, the same for everyone."""
    templates: list[tuple[str, Format | None, tuple[str, str]]] = [
        (text, kind, fillers) for kind, texts in FORMATS.items() for text, fillers in texts.items()
    ]
    templates += [(text, None, fillers) for text, fillers in FREE.items()]
    return tuple(
        Prompt(
            id=f"{number:02d}{'ab'[which]}",
            messages=(Message(role="user", content=text.replace("{x}", filler)),),
            expects=kind,
            cluster=f"template {number:02d}",
        )
        for number, (text, kind, fillers) in enumerate(templates)
        for which, filler in enumerate(fillers)
    )


def _check_effective(prompts: tuple[Prompt, ...], where: str) -> None:
    """What `accuracy_interval` will ask for, said before anything is generated."""
    sizes = np.unique([prompt.cluster for prompt in prompts], return_counts=True)[1].astype(np.float64)
    if sizes.max() > 1 and effective_clusters(sizes) < MIN_ITEM_CLUSTERS:
        raise BehaviourError(
            f"behaviour.prompts: {where}: {len(prompts)} prompts in {sizes.size} clusters are worth "
            f"{float(effective_clusters(sizes)):.0f} equal ones; an interval needs {MIN_ITEM_CLUSTERS}: "
            "use more templates, or more even ones"
        )


def _read(file: Path) -> tuple[Prompt, ...]:
    way_out = "give 'embedded' or the path of a JSONL file"
    lines = read_lines(file, "behaviour.prompts", way_out, BehaviourError)
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"behaviour.prompts: {file}, line {number}"
            prompt = _prompt(line, where, default_id=f"line {number}")
            if prompt.id in prompts:
                raise BehaviourError(f"{where}, id: {prompt.id!r} occurs twice; ids must be unique")
            prompts[prompt.id] = prompt
    return tuple(prompts.values())


def _prompt(line: str, where: str, default_id: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BehaviourError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line"
        ) from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise BehaviourError(f"{where}: a row is an object with either 'prompt' or 'messages'")
    if unknown := sorted(row.keys() - FIELDS):
        raise BehaviourError(f"{where}, {unknown[0]}: unknown field; known are {', '.join(sorted(FIELDS))}")
    expects = row.get("expects")
    if expects is not None and expects not in get_args(Format):
        raise BehaviourError(f"{where}, expects: {expects!r}; must be one of {', '.join(get_args(Format))}")
    identity = _text(row.get("id", default_id), f"{where}, id")
    return Prompt(
        id=identity,
        messages=_messages(row, where),
        expects=expects,
        cluster=_text(row.get("cluster", identity), f"{where}, cluster"),
    )


def _messages(row: dict[str, object], where: str) -> tuple[Message, ...]:
    if "prompt" in row:
        return (Message(role="user", content=_text(row["prompt"], f"{where}, prompt")),)
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise BehaviourError(f"{where}, messages: must be a list of at least one message")
    messages = []
    for i, turn in enumerate(turns):
        at = f"{where}, messages[{i}]"
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise BehaviourError(f"{at}: must be an object with 'role' and 'content' and nothing else")
        if turn["role"] not in ROLES:
            raise BehaviourError(f"{at}.role: {turn['role']!r}; must be one of {', '.join(ROLES)}")
        messages.append(Message(role=turn["role"], content=_text(turn["content"], f"{at}.content")))
    if messages[-1].role != "user":
        raise BehaviourError(
            f"{where}, messages: the last one must be the user's, or there is nothing to answer"
        )
    return tuple(messages)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BehaviourError(f"{where}: must be a text that is not empty, got {value!r}")
    return value
