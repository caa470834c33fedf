"""Fixtures of the endpoint."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from parrot_engine import byte_folder
from served import Served, serve_parrot


@pytest.fixture(scope="session")
def parrot_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_folder(tmp_path_factory.mktemp("parrot"))


@pytest.fixture
def serving(parrot_folder: Path) -> Callable[..., AbstractContextManager[Served]]:
    """`with serving(limits=..., key=..., settings of the engine) as served`."""
    return partial(serve_parrot, parrot_folder)
