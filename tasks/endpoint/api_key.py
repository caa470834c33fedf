"""The API key: from the environment or a file, never from the command line, where every user of a machine reads it."""

from collections.abc import Mapping
from pathlib import Path

from configs.load import ConfigError
from configs.serve import API_KEY_VARIABLE


def read_api_key(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key; None where neither a file nor the environment names one.

    Raises:
        ConfigError: the file cannot be read, or the key is empty or has blanks.
    """
    if file is None:
        key, where = environment.get(API_KEY_VARIABLE), API_KEY_VARIABLE
        if key is None:
            return None
    else:
        where = f"api_key_file = {file}"
        try:
            key = file.read_text(encoding="ascii").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read as ASCII text: {error}") from error
    if not key or not key.isascii() or any(each.isspace() or not each.isprintable() for each in key):
        raise ConfigError(
            f"{where}: a key is one line of printable ASCII without blanks; write one, or leave it out"
        )
    return key
