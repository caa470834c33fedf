"""The adapters that `keiryo serve` is given: each has to belong to the checkpoint that the release was made from."""

from configs.load import ConfigError
from tasks.store.artifact import Artifact


def check_adapter(adapter: Artifact, base: Artifact, name: str, model: str) -> None:
    """Check an adapter before anything is opened.

    Args:
        adapter: what the setting names.
        base: the checkpoint that the release was made from.
        name: under which requests ask for it.
        model: name of the release.

    Raises:
        ConfigError: it has the release's name, is no adapter, or was trained on another checkpoint.
    """
    if name == model:
        raise ConfigError(
            f"adapters.{name}: the release itself is asked for by this name; give the adapter another"
        )
    if adapter.kind != "adapter":
        raise ConfigError(f"adapters.{name}: artifact {adapter.digest} is {adapter.kind}, not an adapter")
    if adapter.manifest.parent != base.digest:
        raise ConfigError(
            f"adapters.{name}: it was trained on checkpoint {adapter.manifest.parent}, the release was made from {base.digest}; "
            "give an adapter of that one"
        )
