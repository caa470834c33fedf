"""A few greedy continuations of the search text, remembered with the candidate: what two engines say when they are left alone."""

from functools import cache
from pathlib import Path

from tasks.engines.protocol import Engine, GenerationRequest
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.machine import machine_digest
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record

PROMPTS = 4
PROMPT_TOKENS = 16
NEW_TOKENS = 16


class Continuations(Record):
    """New tokens of each prompt, in order."""

    tokens: tuple[tuple[int, ...], ...]


def greedy_prompts(workspace: Workspace) -> tuple[tuple[int, ...], ...]:
    """The beginnings of the first search sections, as token ids."""
    return _begun(
        workspace.source.folder, tuple(section.text for section in workspace.splits.search[:PROMPTS])
    )


def continue_prompts(workspace: Workspace, candidate: Candidate, engine: Engine) -> Continuations:
    """The continuations of a candidate whose engine is open.

    Raises:
        EngineError: it does not work.
    """
    prompts = greedy_prompts(workspace)

    def compute() -> Continuations:
        requests = [GenerationRequest(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts]
        return Continuations(tokens=tuple(made.tokens for made in engine.generate(requests)))

    return workspace.store.once(_key(candidate, prompts), Continuations, compute)[0]


def keep_continuations(
    workspace: Workspace, candidate: Candidate, tokens: tuple[tuple[int, ...], ...]
) -> None:
    """Remember continuations of `greedy_prompts` that another process asked for, NEW_TOKENS of each."""
    workspace.store.remember(_key(candidate, greedy_prompts(workspace)), Continuations(tokens=tokens))


def known_continuations(workspace: Workspace, candidate: Candidate) -> Continuations | None:
    """The same from the store; None where its engine was not asked yet."""
    return workspace.store.recall(_key(candidate, greedy_prompts(workspace)), Continuations)


def agreement(reference: Continuations, other: Continuations) -> float:
    """Share of tokens before the first difference, over all prompts."""
    pairs = list(zip(reference.tokens, other.tokens, strict=True))
    equal = sum(_equal_tokens(ours, theirs) for ours, theirs in pairs)
    return equal / sum(len(ours) for ours, _ in pairs)


def _equal_tokens(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    same = [a == b for a, b in zip(first, second, strict=True)]
    return same.index(False) if False in same else len(same)


@cache
def _begun(folder: Path, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The first tokens of each text; reading a tokenizer takes half a second."""
    tokenizer = TextTokenizer(folder)
    return tuple(tuple(tokenizer.encode(t, add_special_tokens=False)[:PROMPT_TOKENS]) for t in texts)


def _key(candidate: Candidate, prompts: tuple[tuple[int, ...], ...]) -> str:
    parts = [candidate.artifact, candidate.engine, prompts, NEW_TOKENS, machine_digest()]
    return f"greedy-{digest_of([*parts, code_digest('tasks/engines', 'tasks/release/greedy.py')])}"
