"""The lessons that need a kernel, again: here they also run in the guests, where LSM programs are obeyed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

LESSONS = Path(__file__).parents[2] / "docs" / "learn"


@pytest.fixture(scope="module")
def lessons() -> ModuleType:
    """The collector of tests/learn, loaded by its path: tests are no package."""
    path = Path(__file__).parents[1] / "learn" / "test_lessons.py"
    spec = importlib.util.spec_from_file_location("actplane_lessons", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["08-kernel", "09-hooks", "10-deny"])
def test_lesson_on_this_kernel(lessons: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons.test_lesson(LESSONS / f"{name}.md", tmp_path, monkeypatch)
