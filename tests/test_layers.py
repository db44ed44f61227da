"""The layer contract holds, and is noticed where it does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "sb3_attention_ac", tmp_path / "sb3_attention_ac", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contract_holds(checkout):
    result = lint(checkout)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("losses.py", "import sb3_attention_ac.aac", "Layers BROKEN"),
        ("compare/errors.py", "import sb3_attention_ac.compare.report", "No import cycles BROKEN"),
        (
            "networks/transformer.py",
            "import sb3_attention_ac.zoo",
            "No module of the algorithm knows what stands around it BROKEN",
        ),
    ],
)
def test_a_cycle_breaks_it(checkout, module, line, broken):
    path = checkout / "sb3_attention_ac" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint(checkout)
    assert result.returncode != 0 and broken in result.stdout
