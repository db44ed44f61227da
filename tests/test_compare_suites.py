"""Comparison: suites, their results, and the tables made of these."""

import math
import re
import runpy
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_compare import make_result, make_results

from sb3_attention_ac.compare import backends, comparison, suites
from sb3_attention_ac.compare.__main__ import main
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.jobs import plan
from sb3_attention_ac.compare.outcome import Outcome
from sb3_attention_ac.compare.settings import Job, Protocol
from sb3_attention_ac.compare.storage import Result, to_text
from sb3_attention_ac.compare.suites import choose, fingerprint, read_results, read_suite, result_rows, update_results
from sb3_attention_ac.compare.variants import collect_variants

# RL Zoo imports what it finds installed
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pygame"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:popgym"),
]

ROOT = Path(__file__).parent.parent
SUITE = """
algos: [ppo]
variants: [stack.yml]
envs: {CartPole-v1: 200, Pendulum-v1: }
seeds: 2
steps: 300
evaluations: 3
episodes: 2
"""
FILES = {
    "suite.yml": SUITE,
    "stack.yml": "ppo-stack4: {algo: ppo, hyperparams: {frame_stack: 4}}",
    "ppo.yml": "default: {policy: MlpPolicy, gamma: 0.7}",
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Runs are made up instead of trained; these are their names."""
    names: list[str] = []

    def launch(job: Job, out: Path, command: str) -> Outcome:
        names.append(str(job))
        made = make_result(job.variant, job.env, job.seed, (0.0, 1.0, 2.0 + job.seed))
        return Outcome(job, result=to_text(replace(made, job=job, steps=job.protocol.steps)))

    monkeypatch.setattr(backends, "launch", launch)
    monkeypatch.setattr(comparison, "check_worker", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return names


def table(path: Path) -> list[tuple[Any, ...]]:
    columns = ["environment", "algorithm", "seed", "steps", "final"]
    return [tuple(row) for row in pd.read_csv(path)[columns].itertuples(index=False)]


# ---- one command


@pytest.mark.slow
def test_a_suite_is_one_command(suite: Path, launched: list[str]) -> None:
    assert main(["--suite", str(suite), "--n-jobs", "1"]) == 0
    assert table(suite / "results.csv") == [
        (env, algorithm, seed, steps, 2 + seed)
        for env, steps in (("CartPole-v1", 200), ("Pendulum-v1", 300))
        for algorithm in ("ppo", "ppo-stack4")
        for seed in (0, 1)
    ]
    assert len(launched) == 8
    result = suite.parent / "runs" / "small" / "runs" / "ppo" / "CartPole-v1" / "seed-0" / "result.json"
    assert '"gamma": 0.7' in result.read_text()  # the suite's own file
    first = (suite / "results.csv").read_bytes()
    assert main(["--suite", str(suite), "--n-jobs", "1"]) == 0
    assert len(launched) == 8 and (suite / "results.csv").read_bytes() == first


def test_an_interrupted_suite_keeps_its_rows_and_goes_on(
    suite: Path, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backends.launch

    def until_the_fourth(job: Job, out: Path, command: str) -> Outcome:
        if len(launched) == 3:
            raise KeyboardInterrupt
        return made(job, out, command)

    monkeypatch.setattr(backends, "launch", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        main(["--suite", str(suite), "--n-jobs", "1"])
    assert len(table(suite / "results.csv")) == 3
    monkeypatch.setattr(backends, "launch", made)
    assert main(["--suite", str(suite), "--n-jobs", "1"]) == 0
    assert len(launched) == len(set(launched)) == 8
    assert len(table(suite / "results.csv")) == 8


def test_a_part_of_a_suite_adds_its_rows(suite: Path, launched: list[str]) -> None:
    base = ["--suite", str(suite), "--n-jobs", "1"]
    assert main([*base, "--envs", "CartPole-v1", "--algos", "ppo", "--seeds", "1"]) == 0
    assert table(suite / "results.csv") == [("CartPole-v1", "ppo", 0, 200, 2)]
    # Elsewhere, without the runs of the first
    assert main([*base, "--variants", "stack.yml", "--seeds", "1", "--out", "other"]) == 0
    assert [row[:3] for row in table(suite / "results.csv")] == [
        ("CartPole-v1", "ppo", 0), ("CartPole-v1", "ppo-stack4", 0), ("Pendulum-v1", "ppo-stack4", 0)
    ]  # fmt: skip


@pytest.mark.parametrize("flag", ["--algos", "--variants"])
def test_a_variant_is_chosen_by_the_name_in_the_table(suite: Path, launched: list[str], flag: str) -> None:
    (suite / "stack.yml").write_text((suite / "stack.yml").read_text() + "\nother=1:\n  algo: ppo\n")
    base = ["--suite", str(suite), "--n-jobs", "1", "--envs", "CartPole-v1", "--seeds", "1"]
    assert main([*base, flag, "other=1", "ppo"]) == 0
    assert {row[1] for row in table(suite / "results.csv")} == {"other=1", "ppo"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "100000"], "--steps must be set in suite.yml"),  # the default of the command line, but not the suite's
        (["--gym-packages", "popgym", "--stochastic"], "--gym-packages, --stochastic must be set in suite.yml"),
        (["--envs", "Pendulum-v0"], "environment of the suite 'Pendulum-v0'; the closest known names are: Pendulum-v1"),
        (["--algos", "a2c"], "algorithm or variant of the suite 'a2c'"),
        (["--variants", "ladder"], "algorithm or variant of the suite 'ladder'"),
    ],
)
def test_what_a_suite_is_made_of_stands_in_its_file(
    suite: Path, launched: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--suite", str(suite), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not launched


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algo: [ppo]", "argument in .*'algo'; the closest known names are: algos"),
        ("algos: ppo", "algos must be a list of strings, not 'ppo'"),
        ("algos: [1]", r"algos must be a list of strings, not \[1\]"),
        ("seeds: many", "seeds must be int, not 'many'"),
        ("seeds: true", "seeds must be int, not True"),
        ("out: here", "argument in .*'out'"),
        ("", "must map arguments"),
    ],
)
def test_wrong_suites_are_named(suite: Path, text: str, message: str) -> None:
    (suite / "suite.yml").write_text(text)
    with pytest.raises(CompareError, match=rf"suite\.yml.*{message}|{message}"):
        read_suite(suite)


def test_files_of_a_suite_are_looked_for_in_its_folder(suite: Path) -> None:
    (suite / "suite.yml").write_text("variants: [stack.yml, stack.yml:ppo-a, ladder]\nhyperparams: zoo")
    read = read_suite(suite)
    assert read["variants"] == [str(suite / "stack.yml"), str(suite / "stack.yml:ppo-a"), "ladder"]
    assert read["hyperparams"] == "zoo"
    assert choose({"envs": ["A=5", "B"]}, {"envs": ["B", "A"]})["envs"] == ["B", "A=5"]


@pytest.mark.filterwarnings("ignore:.*has no hyperparameters for:UserWarning")  # RL Zoo has MuJoCo's v4
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("benchmarks/*/suite.yml")), ids=str)
def test_suites_of_the_repository_can_be_planned(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # files are found from anywhere
    read = read_suite(folder)
    for package in read.get("gym_packages", []):
        pytest.importorskip(package)
    variants = collect_variants(read.get("algos", []), read.get("variants", []))
    given = {name: read[name] for name in ("steps", "evaluations", "episodes") if name in read}
    protocol = Protocol(gym_packages=tuple(read.get("gym_packages", [])), deterministic=not read.get("stochastic"), **given)
    planned = plan(variants, read["envs"], 1, protocol, read["hyperparams"])
    assert len(planned) == len(variants) * len(read["envs"])
    if (folder / "results.csv").exists():  # else the next run would replace the rows that are there
        settings = {(job.env, job.variant): fingerprint(job) for job in planned}
        rows = read_results(folder / "results.csv").to_dict("records")
        assert not {
            key
            for row in rows
            if settings.get(key := (row["environment"], row["algorithm"]), row["settings"]) != row["settings"]
        }


# ---- rows


def with_settings(results: list[Result], **hyperparams: Any) -> list[Result]:
    return [replace(r, job=replace(r.job, hyperparams=hyperparams)) for r in results]


def test_row_of_a_run() -> None:
    result = make_result("good", "A", 3, (0.0, 5.0, 2.0))
    training = [replace(e, training=value) for e, value in zip(result.evaluations, (None, 1.5, 1.0), strict=True)]
    provenance = {**result.provenance, "hardware": {"processor": "a chip"}, "git_revision": "abc"}
    (row,) = result_rows([replace(result, evaluations=tuple(training), provenance=provenance)]).to_dict("records")
    assert row == {
        "environment": "A", "algorithm": "good", "seed": 3, "steps": 100, "final": 2.0, "best_evaluation": 5.0,
        "best_training": 1.5, "diverged": False, "evaluations": 2, "episodes": 2, "curve": "0:0 50:5 100:2",
        "train_seconds": 2.0, "processor": "a chip", "settings": fingerprint(result.job), "versions": "python=3 git=abc",
    }  # fmt: skip


def test_row_of_a_diverged_run() -> None:
    (row,) = result_rows([make_result("good", "A", 3, (0.0, 5.0, math.nan))]).to_dict("records")
    assert row["diverged"] and math.isnan(row["final"]) and row["best_evaluation"] == 5 and math.isnan(row["best_training"])


def test_fingerprint_is_that_of_the_settings() -> None:
    job = make_result("good", "A", 0, (0.0,)).job
    same = replace(job, variant="poor", env="B", seed=4, protocol=replace(job.protocol, device="cuda", gym_packages=("x",)))
    assert fingerprint(job) == fingerprint(same)
    longer = replace(job.protocol, steps=7)
    for other in (replace(job, hyperparams={"gamma": 0.5}), replace(job, algo="a2c"), replace(job, protocol=longer)):
        assert fingerprint(job) != fingerprint(other)


def test_rows_of_other_runs_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results = make_results(3)
    update_results(path, results[:5])
    update_results(path, results[3:])
    whole = tmp_path / "whole.csv"
    update_results(whole, results)
    assert path.read_text() == whole.read_text()
    update_results(path, [])
    assert path.read_text() == whole.read_text()


@pytest.mark.parametrize("names", [("16", "32"), ("nan", "NA"), ("0.5", "1e3")])
def test_names_that_look_like_numbers_stay_names(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "results.csv"
    results = [make_result(name, "A", seed, (0.0, 1.0, 2.0)) for name in names for seed in range(2)]
    for _ in range(3):
        update_results(path, results)
    assert sorted(read_results(path)["algorithm"].tolist()) == sorted([*names, *names])


def test_steps_of_a_suite_stand_in_its_file() -> None:
    suite = {"envs": ["CartPole-v1=600", "Pendulum-v1"]}
    assert choose(suite, {"envs": ["CartPole-v1"]})["envs"] == choose(suite, {"envs": ["CartPole-v1=600"]})["envs"]
    for entry in ("CartPole-v1=50", "Pendulum-v1=50"):
        with pytest.raises(CompareError, match=r"--envs has .*=50, and the suite .*: set steps in suite\.yml"):
            choose(suite, {"envs": [entry]})


def test_rows_of_other_settings_do_not_stay_beside_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    update_results(path, make_results(3))
    new = with_settings([r for r in make_results(1) if r.job.variant == "good" and r.job.env == "A"], gamma=0.5)
    with pytest.warns(UserWarning, match="rows with other settings are replaced: good on A"):
        update_results(path, new)
    rows = read_results(path)
    assert len(rows[(rows["algorithm"] == "good") & (rows["environment"] == "A")]) == 1
    assert len(rows) == 10


def test_rows_without_settings_and_with_other_columns_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("algorithm,environment,seed,final,remark\nold,A,0,1.5,by hand\nold,A,1,,\n")
    update_results(path, make_results(1))
    rows = read_results(path)
    assert len(rows) == 6
    assert rows[rows["algorithm"] == "old"]["remark"].tolist()[0] == "by hand"
    assert "old,0,,1.5," in path.read_text() and "good,0,100,9," in path.read_text()


def test_a_file_that_is_none_of_results_is_refused_before_training(suite: Path, launched: list[str]) -> None:
    for text, message in {
        "a,b\n1,2\n": "has no column", "": "cannot be read as CSV",
        "environment,algorithm,seed,final\nA,x,0,1\nA,x,0,2\n": "two rows",
    }.items():  # fmt: skip
        (suite / "results.csv").write_text(text)
        with pytest.raises(CompareError, match=message):
            read_results(suite / "results.csv")
    assert main(["--suite", str(suite), "--n-jobs", "1"]) == 2
    assert not launched


def test_two_commands_can_do_parts_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    results = make_results(2)
    update_results(path, results[:1])
    inside, entered = threading.Event(), threading.Event()
    read = suites.read_results

    def slowly(file: Path) -> pd.DataFrame:
        rows = read(file)
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            inside.wait(0.5)  # the other one would write here
        return rows

    monkeypatch.setattr(suites, "read_results", slowly)
    other = threading.Thread(target=update_results, args=(path, results[1:4]))
    other.start()
    entered.wait(10)
    update_results(path, results[4:])
    inside.set()
    other.join()
    assert len(read(path)) == len(results)


# ---- tables


def pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "docs"), "--suites", str(tmp_path)])
    runpy.run_path(str(ROOT / "benchmarks" / "tables.py"), run_name="__main__")
    return tmp_path / "docs"


def test_tables_are_made_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        replace(r, steps=r.steps + 28 * (r.job.variant == "poor"), train_seconds=10.0 + r.job.seed) for r in make_results(5)
    ]
    results += [make_result("third", "B", seed, (0.0, 1.0, math.nan if seed else 4.0)) for seed in range(3)]
    results = [
        replace(r, evaluations=(*r.evaluations[:2], replace(r.evaluations[2], training=3.5))) if r.job.env == "A" else r
        for r in results
    ]
    update_results(tmp_path / "some" / "results.csv", results)
    folder = pages(monkeypatch, tmp_path)
    text = (folder / "some.md").read_text()
    last, training, time = text.split("### ")[1:]
    assert "| environment | good | poor | third | steps | seeds |" in last
    assert re.search(r"\| A \| \*\*11 \[9.\d, 12.\d\]\*\* \| 4 \[2.\d, 5.\d\] \| - \| 100 to 128 \| 5 \|", last)
    assert re.search(r"\| B \| 1 \[.*\| 4 \(2 of 3 diverged\) \| 100 to 128 \| 3 to 5 \|", last)
    assert "| A | 3.5 [3.5, 3.5] | 3.5 [3.5, 3.5] | 100 to 128 | 5 |" in training
    assert "| B" not in training
    assert "| A | 12 [" in time and "**" not in time
    assert "![Last return" in text and "(some.png)" in text
    assert (folder / "some.png").read_bytes().startswith(b"\x89PNG")
    again = (folder / "some.png").read_bytes()
    assert pages(monkeypatch, tmp_path) == folder and (folder / "some.png").read_bytes() == again


def test_tables_of_a_file_with_the_scores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.csv").write_text("algorithm,environment,seed,final\nx,A,0,1.5\nx,A,1,2.5\n")
    text = (pages(monkeypatch, tmp_path) / "old.md").read_text()
    assert text.count("### ") == 1
    assert "| A | 2 [1.5, 2.5] | - | 2 |" in text


def test_a_file_that_is_spoilt_meanwhile_ends_no_run(
    suite: Path, launched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = backends.launch

    def launch(job: Job, out: Path, command: str) -> Outcome:
        (suite / "results.csv").write_text("a,b\n1,2\n")
        return made(job, out, command)

    monkeypatch.setattr(backends, "launch", launch)
    assert main(["--suite", str(suite), "--n-jobs", "1"]) == 2
    assert "has no column" in capsys.readouterr().err and len(launched) == 8
    (suite / "results.csv").unlink()
    assert main(["--suite", str(suite), "--n-jobs", "1"]) == 0
    assert len(table(suite / "results.csv")) == len(launched) == 8


def test_no_results_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pages(monkeypatch, tmp_path)
    assert "has no suite with a results.csv" in capsys.readouterr().err


def test_pairs_have_their_probability_of_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "games").mkdir()
    rows = [f"{x},{env},{seed},{seed + 10 * (x == 'b')}" for x in "ab" for env in ("A", "B") for seed in range(5)]
    scores = "\n".join(f"{row},{row.rpartition(',')[2]}" for row in rows)
    (tmp_path / "games" / "results.csv").write_text(f"algorithm,environment,seed,final,best_training\n{scores}\n")
    (tmp_path / "games" / "pairs.csv").write_text("algorithm,other\nb,a\na,b\n")
    text = (pages(monkeypatch, tmp_path) / "games.md").read_text()
    assert "| b above a | **1.00 [1.00, 1.00]** | **1.00 [1.00, 1.00]** |" in text
    assert "| a above b | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] |" in text and "5 seeds each" in text


def test_a_run_that_diverged_counts_as_the_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "games").mkdir()
    rows = [f"a,A,{seed},1" for seed in range(5)] + [f"b,A,{seed},{'' if seed else 2}" for seed in range(5)]
    (tmp_path / "games" / "results.csv").write_text("algorithm,environment,seed,final\n" + "\n".join(rows))
    (tmp_path / "games" / "pairs.csv").write_text("algorithm,other\nb,a\na,c\n")
    text = (pages(monkeypatch, tmp_path) / "games.md").read_text()
    assert "| b above a | 0.60 [" in text and "a above c" not in text  # one above, four ties


def test_differences_are_paired_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the algorithms of one suite, or of two; seeds that only one has do not count"""
    for suite, rows in {
        "games": [f"{name},{env},{seed},{10 * seed + (name == 'b')}" for name in "ab" for env in "AB" for seed in range(5)],
        "others": [f"c,A,{seed},{10 * seed + (-2 if seed % 2 else 3)}" for seed in range(1, 7)],
    }.items():
        (tmp_path / suite).mkdir()
        scores = "\n".join(rows)
        (tmp_path / suite / "results.csv").write_text(f"algorithm,environment,seed,final\n{scores}\n")
    (tmp_path / "games" / "differences.csv").write_text("algorithm,other\nb,a\na,b\nothers/c,a\n")
    text = (pages(monkeypatch, tmp_path) / "games.md").read_text().split("### Paired by seed")[1]
    assert "over training" not in text  # no curves
    assert "| environment | b minus a | a minus b | c minus a |" in text
    assert "| A | **1 [1, 1]** | **-1 [-1, -1]** | 0.5 [-2, 3] |" in text
    assert "| B | **1 [1, 1]** | **-1 [-1, -1]** | - |" in text


def test_differences_over_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the mean of the curve without its first value, of the seeds that have one; runs that diverge stay"""
    curves = {"a": (9.0, 1.0, 4.0), "b": (0.0, 4.0, 4.0)}
    results = [make_result(name, "A", seed, curve) for name, curve in curves.items() for seed in range(2)]
    results += [make_result(name, "B", 0, (0.0, math.nan if name == "b" else 1.0, 1.0)) for name in curves]
    update_results(tmp_path / "some" / "results.csv", results)
    with (tmp_path / "some" / "results.csv").open("a") as file:
        file.writelines(f"A,{name},7,100,{end},,,,,,,,,,\n" for name, end in (("a", 1), ("b", 7)))
    (tmp_path / "some" / "differences.csv").write_text("algorithm,other\nb,a\n")
    last, over_training = (pages(monkeypatch, tmp_path) / "some.md").read_text().split("### Paired by seed")[1:]
    assert "| A | 2 [0, 6] |" in last  # 0, 0 and 6
    assert over_training.startswith(", over training") and "| A | **1.5 [1.5, 1.5]** |" in over_training
    assert "| B | 0 |" in last and "| B | diverged |" in over_training


def test_steps_to_a_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that stay below count with all their steps; those of files without curves are left out, as what has no threshold"""
    curves = {("good", "A"): (0.0, 5.0, 2.0), ("poor", "A"): (0.0, 4.9, 3.0), ("good", "B"): (9.0, 9.0, 9.0)}
    results = [make_result(*names, seed, curve) for names, curve in curves.items() for seed in range(2)]
    results.append(make_result("good", "A", 2, (0.0, math.nan, 6.0)))
    update_results(tmp_path / "some" / "results.csv", results)
    with (tmp_path / "some" / "results.csv").open("a") as file:
        file.write("A,before,0,100,7,,,,,,,,,,\n")
    (tmp_path / "some" / "thresholds.csv").write_text("environment,threshold\nA,5\nC,0\n")
    text = (pages(monkeypatch, tmp_path) / "some.md").read_text().split("### Steps to a threshold")[1]
    assert "| A: 5 | 66.7 [50, 100] | 100 [100, 100] | 100 | 2 to 3 |" in text
    assert "before" not in text and "| B" not in text and "| C" not in text


def test_published_numbers_stand_beside_the_best_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [make_result("good", env, 0, (0.0, 2.0)) for env in "BAD"]
    results = [replace(r, evaluations=tuple(replace(e, training=0.5) for e in r.evaluations)) for r in results]
    update_results(tmp_path / "some" / "results.csv", results)
    (tmp_path / "some" / "published.csv").write_text('environment,"GRU, 15M",best\nA,0.5,0.70 (LMU)\nC,1,1\nB,-0.10,\n')
    last, training = (pages(monkeypatch, tmp_path) / "some.md").read_text().split("### ")[1:3]
    assert "published" not in last and "GRU" not in last
    assert "| seeds | GRU, 15M | best |" in training
    assert "| 1 | 0.5 | 0.70 (LMU) |" in training and "| 1 | -0.10 | - |" in training
    assert "| 1 | - | - |" in training  # D was not published
