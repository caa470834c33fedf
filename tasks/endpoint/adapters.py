"""The adapters that `keiryo serve` is given: each has to belong to the checkpoint that the release was made from."""

from configs.load import ConfigError
from tasks.store.artifact import Artifact


def check_adapter(adapter: Artifact, base: Artifact, name: str) -> None:
    """Raise ConfigError where an artifact is no adapter of the checkpoint that the release was made from."""
    if adapter.kind != "adapter":
        raise ConfigError(f"adapters.{name}: artifact {adapter.digest} is {adapter.kind}, not an adapter")
    if adapter.manifest.parent != base.digest:
        raise ConfigError(
            f"adapters.{name}: it was trained on checkpoint {adapter.manifest.parent}, the release was made from {base.digest}; "
            "give an adapter of that one"
        )
