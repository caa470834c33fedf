"""A model of the Hugging Face hub, at one commit. The network is used only when a config names a hub id."""

import re
from pathlib import Path

from configs.model import HubSource
from tasks.models.checkpoint_folder import INDEX, SIDE_FILES, SINGLE, refuse_pickle
from tasks.models.errors import ModelSourceError


def _explain(source: HubSource, error: Exception) -> ModelSourceError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ModelSourceError(
        f"hub model {source.id} at revision {source.revision}: {reason[0]}; "
        "check model.source.id and revision, the network, and HF_TOKEN for a gated model"
    )


def resolve_commit(source: HubSource) -> str:
    """The commit of the revision; a full commit is taken as it is, without the network.

    Raises:
        ModelSourceError: no such model or revision, or the hub cannot be reached.
    """
    if re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi().model_info(source.id, revision=source.revision).sha
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise _explain(source, error) from error
    if commit is None:
        raise ModelSourceError(
            f"hub model {source.id}: the hub names no commit for revision {source.revision}"
        )
    return commit


def download(source: HubSource, commit: str, folder: Path, *, trust_remote_code: bool) -> None:
    """Fetch the data files of a model into a folder.

    Raises:
        ModelSourceError: no such model, no safetensors weights, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [
        "config.json",
        *SIDE_FILES,
        INDEX,
        "model*.safetensors",
        *(["*.py"] if trust_remote_code else []),
    ]
    try:
        names = HfApi().list_repo_files(source.id, revision=commit)
        if INDEX not in names and SINGLE not in names:
            refuse_pickle(names, f"hub model {source.id} at {commit}")
        snapshot_download(source.id, revision=commit, local_dir=folder, allow_patterns=patterns)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise _explain(source, error) from error
