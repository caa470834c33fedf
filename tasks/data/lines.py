"""The lines of a file that the user named in a setting."""

from pathlib import Path


def read_lines(file: Path, setting: str, way_out: str, error: type[ValueError]) -> list[str]:
    """Read a UTF-8 file; only a newline ends a line, as other separators may stand inside JSON strings.

    Args:
        file: to read.
        setting: that named it.
        way_out: what to give instead: "give the path of a JSONL file".
        error: raised with one line that names setting, file and rule.
    """
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except OSError as unreadable:
        raise error(f"{setting}: {file}: {unreadable.strerror}; {way_out}") from unreadable
    except UnicodeDecodeError as undecodable:
        raise error(
            f"{setting}: {file}: byte {undecodable.start} is not UTF-8; save the file as UTF-8"
        ) from undecodable
