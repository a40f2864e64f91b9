"""torchvision is imported without torch's compiler."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from cst_search import uncompiled


@pytest.mark.parametrize(("asked", "is_imported"), [("is_compile_supported", False), ("another_name", True)])
def test_a_module_that_asks_for_another_name_gets_the_compiler(
    asked: str, is_imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = "compiler_of_this_test"
    (tmp_path / f"{compiler}.py").write_text("is_compile_supported = another_name = lambda device: device\n")
    (tmp_path / "asks.py").write_text(f"from {compiler} import {asked} as asked\n")
    monkeypatch.setattr(uncompiled, "_COMPILER", compiler)
    monkeypatch.syspath_prepend(tmp_path)
    module = ModuleType("asks")
    try:
        uncompiled._Loader("asks", str(tmp_path / "asks.py")).exec_module(module)
        assert (compiler in sys.modules) == is_imported
        assert module.asked("cpu") == "cpu"  # the stand-in asks the compiler as it is called
    finally:
        sys.modules.pop(compiler, None)
