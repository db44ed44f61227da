"""The pages: links lead somewhere, snippets run, tables say what the files say, and nothing is too long."""

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from stable_baselines3.common.logger import Logger

from sb3_attention_ac import AAC

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
FILES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *PAGES]
MAX_WORDS = 1500  # ten minutes

sys.path.insert(0, str(ROOT / "benchmarks"))
from last_returns import PAGES as PAGES_WITH_TABLES  # noqa: E402
from last_returns import cells, with_tables  # noqa: E402
from pictures import PICTURE, described, draw, drawn_runs  # noqa: E402
from tables import page_text, write_page  # noqa: E402


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MyST make of a page's headings"""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", without_code(page))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", FILES, ids=name)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "api.md"], ids=name)
def test_a_page_is_read_in_ten_minutes(page):
    assert len(page.read_text().split()) <= MAX_WORDS


@pytest.mark.parametrize("page", sorted(DOCS.glob("results/*.md")), ids=lambda page: page.stem)
def test_what_the_site_includes_github_links_to(page):
    for before, included in re.findall(r"(.*)\n\n```\{include\} (\S+)", page.read_text()):
        assert before == f"[Tables and picture]({included})"


@pytest.mark.parametrize("page", PAGES_WITH_TABLES, ids=name)
def test_tables_are_those_of_the_files(page):
    assert page.read_text() == with_tables(page.read_text()), "run: python benchmarks/last_returns.py"


@pytest.mark.parametrize("file", sorted(ROOT.glob("benchmarks/*/results.csv")), ids=lambda file: file.parent.name)
def test_pages_of_suites_are_those_of_the_files(file):
    page = DOCS / "results" / "suites" / f"{file.parent.name}.md"
    assert page.exists() and page.read_text() == page_text(file), "run: make tables"


def test_a_page_written_by_hand_is_not_overwritten(tmp_path):
    file = ROOT / "benchmarks" / "rewriting" / "results.csv"
    page = write_page(file, tmp_path)
    write_page(file, tmp_path)  # its own
    page.write_text("# Memory that is rewritten")
    with pytest.raises(ValueError, match="was not made by this script"):
        write_page(file, tmp_path)
    assert page.read_text() == "# Memory that is rewritten"


def test_the_picture_is_that_of_the_file():
    with Image.open(PICTURE) as image:
        assert image.info["Description"] == described(drawn_runs()), "run: python benchmarks/pictures.py"


def test_the_picture_shows_every_run():
    runs = drawn_runs()
    lines = draw(runs).axes[0].lines
    shown = [float(y) for line in lines if line.get_gid() == "runs" for y in line.get_ydata()]
    assert sorted(shown) == sorted(runs["last_return"]) and len(shown) == 45
    means = [line.get_ydata()[0] for line in lines if line.get_gid() == "mean"]
    assert sorted(means) == pytest.approx(sorted(runs.groupby(["task", "variant"])["last_return"].mean()))


def test_a_table_of_some_tasks():
    marked = "<!-- table: popgym/last_returns.csv suite=recall rows=task tasks={} -->\n<!-- end of table -->"
    rows = with_tables(marked.format("RepeatPreviousHard,RepeatFirstEasy")).splitlines()[3:-1]
    assert [row.split(",")[0] for row in rows] == ["| RepeatFirstEasy", "| RepeatPreviousHard"]
    with pytest.raises(ValueError, match=r"has no \['Typo'\]"):
        with_tables(marked.format("Typo"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_diverged_run_is_said_and_makes_nothing_bold(order):
    returns = {"aac": [22.0, 23.0], "a2c": [7.0, 8.0], "ppo": [100.0, 101.0, np.nan], "dqn": [np.nan, np.nan]}
    rows = [("A", variant, value) for variant, values in returns.items() for value in values][::order]
    texts = cells(pd.DataFrame(rows, columns=["task", "variant", "last_return"]))
    assert texts["A", "ppo"] == "100 [100, 101] (1 of 3 diverged)" and texts["A", "dqn"] == "diverged"
    assert not any("**" in text for text in texts.values())


def snippets(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE))


# A whole comparison, which has tests of its own; and a package that the tests do not need
NOT_RUN = ("compare.md", "tensorboard.md")


PAGES = [page for page in FILES if snippets(page) and page.name not in NOT_RUN]
SLOW = ("onnx.md",)  # to export takes a while


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [], id=name(page)) for page in PAGES]
)
def test_snippets_run(page, monkeypatch, tmp_path, learn_a_rollout):
    """The snippets of a page, one after the other, each training for one rollout."""
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"\brange\(\d+\)", "range(3)", snippets(page))
    exec(compile(code, name(page), "exec"), {"__name__": "snippet"})


SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": dict(aux_loss="prediction", clip_range_vf=0.2),
    "contrastive": dict(aux_loss="contrastive"),
    "memory": dict(policy_kwargs=dict(memory_actor=True)),
    "attention_q": dict(policy_kwargs=dict(attention_q=True)),
    "continuous": dict(env="Pendulum-v1"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_logged_key_is_explained(setting, monkeypatch):
    table = (DOCS / "guide" / "logs.md").read_text().split("## All keys")[1]
    documented = [re.sub(r"<\w+>", r"\\w+", key) for key in re.findall(r"`((?:train|rollout)/[^`]+)`", table)]
    logged = set()
    record = Logger.record

    def note(self, key, value, exclude=None):
        logged.add(key)
        record(self, key, value, exclude)

    monkeypatch.setattr(Logger, "record", note)
    AAC("MlpPolicy", **{"env": "CartPole-v1", "n_steps": 64, **SETTINGS[setting]}).learn(128)
    own = {key for key in logged if key.startswith(("train/", "rollout/")) and not key.startswith("rollout/ep_")}
    assert "train/approx_kl" in own
    assert not [key for key in own if not any(re.fullmatch(pattern, key) for pattern in documented)]


def messages(package: str) -> str:
    """:return: All texts in a package's source, with "..." for what they are filled with"""
    found = []
    for path in Path(importlib.import_module(package).__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_errors_of_the_troubleshooting_page_exist() -> None:
    source = messages("sb3_attention_ac") + messages("stable_baselines3")
    rows = [line.split(" | ")[0] for line in (DOCS / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    quoted = [message for row in rows for message in re.findall("`([^`]+)`", row) if not message.endswith("Error")]
    assert len(quoted) > 30
    for message in quoted:  # without its examples: quoted names, values and numbers
        for words in re.split(r"\.\.\.|'[^']*'|\w+=[\w.]*|\b\d+\b|lin_0.001|evaluate_actions|Tuple", message):
            assert words.strip() in source, message
