"""What a draft model must share with the model that checks its tokens: the engine's format and, id for id, the tokenizer."""

import json
from pathlib import Path

from configs.engine import EngineSettings
from configs.speculation import DraftModel
from tasks.engines.protocol import EngineUnavailable
from tasks.store.artifact import Artifact
from tasks.store.digest import digest_of

_MEANING = ("model", "added_tokens", "normalizer", "pre_tokenizer")
"""What decides which text an id stands for; templates, padding and truncation do not."""


def tokenizer_digest(folder: Path) -> str:
    """Digest of what the ids of a folder's `tokenizer.json` mean.

    Raises:
        EngineUnavailable: the folder has none.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise EngineUnavailable(
            f"{folder} has no tokenizer.json, so that nothing tells which tokens its ids are; export it again"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    return digest_of({name: content.get(name) for name in _MEANING})


def check_draft(target: Artifact, settings: EngineSettings, draft: Artifact | None) -> Artifact | None:
    """The draft that the settings name, or None where they name none.

    Args:
        target: the artifact that is served.
        settings: the engine configuration.
        draft: the artifact that was opened under `speculation.draft`.

    Raises:
        EngineUnavailable: another draft or none was given, or it does not fit the target.
    """
    speculation = settings.speculation
    if not isinstance(speculation, DraftModel):
        return None
    if draft is None or draft.digest != speculation.draft:
        given = "none" if draft is None else draft.digest
        raise EngineUnavailable(
            f"speculation.draft is {speculation.draft}, the engine was given {given}; open that artifact from the store"
        )
    if draft.kind != target.kind:
        raise EngineUnavailable(
            f"speculation.draft is a {draft.kind} artifact, the model is {target.kind}; export the draft for the same engine"
        )
    ours, theirs = (tokenizer_digest(artifact.folder) for artifact in (target, draft))
    sizes = tuple(_vocabulary(artifact.folder) for artifact in (target, draft))
    if ours != theirs or sizes[0] != sizes[1]:
        raise EngineUnavailable(
            f"the draft {draft.digest} has another tokenizer ({theirs[:12]}, {sizes[1]} tokens) than the model ({ours[:12]}, "
            f"{sizes[0]} tokens): its ids would mean other words; use a draft of the same family, or speculation.kind: prompt_lookup"
        )
    return draft


def _vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
