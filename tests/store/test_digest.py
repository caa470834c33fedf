import hashlib
import math
from importlib.metadata import version

import pytest

from tasks.store.digest import canonical_json, code_digest, digest_of, library_versions, sha256_file
from tasks.store.record import Record


class Point(Record):
    x: float
    name: str


def test_canonical_json_does_not_depend_on_order_or_container():
    assert (
        canonical_json({"b": (1, 2), "a": "é"})
        == canonical_json({"a": "é", "b": [1, 2]})
        == '{"a":"é","b":[1,2]}'
    )
    assert digest_of(Point(x=1.5, name="p")) == digest_of({"name": "p", "x": 1.5})
    assert digest_of({}) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(("value", "error"), [(math.nan, ValueError), ({1, 2}, TypeError), (b"x", TypeError)])
def test_values_without_one_json_text_are_refused(value, error):
    with pytest.raises(error):
        digest_of({"v": value})


def test_file_digest(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_code_digest_changes_with_any_source_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.store.digest.PROJECT_ROOT", tmp_path)
    (tmp_path / "pkg/sub").mkdir(parents=True)
    (tmp_path / "pkg/a.py").write_text("raise SystemExit('imported')")
    (tmp_path / "pkg/sub/b.py").write_text("B = 1")
    (tmp_path / "other.py").write_text("O = 1")
    before = code_digest("pkg")
    (tmp_path / "pkg/notes.txt").write_text("no code")
    (tmp_path / "other.py").write_text("O = 2")
    assert code_digest("pkg") == before
    assert code_digest("pkg", "other.py") != before
    (tmp_path / "pkg/sub/b.py").write_text("B = 2")
    code_digest.cache_clear()  # a new process
    changed = code_digest("pkg")
    assert changed != before
    (tmp_path / "pkg/sub/b.py").rename(tmp_path / "pkg/sub/c.py")
    code_digest.cache_clear()
    assert code_digest("pkg") not in (before, changed)


@pytest.mark.parametrize("path", ["tasks/no_such_folder", "tasks/store/no_such.py"])
def test_a_path_without_sources_is_refused(path):
    with pytest.raises(FileNotFoundError, match="no_such"):
        code_digest(path)


def test_library_versions():
    assert library_versions("pydantic", "no-such-dist") == {
        "pydantic": version("pydantic"),
        "no-such-dist": "not installed",
    }
