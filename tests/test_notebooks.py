"""The notebooks run from top to bottom, each training for one rollout."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["comparing_with_ppo", "first_memory_agent"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_stored_without_output(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(notebook, monkeypatch, tmp_path, capsys, learn_a_rollout):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    code = code_of(notebook).replace("steps=20_000", "steps=2_048").replace("seeds=5", "seeds=2")
    exec(compile(code, notebook.stem, "exec"), {"__name__": "notebook"})
    plt.close("all")
    assert capsys.readouterr().out
