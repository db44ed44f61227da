"""Comparison: everything around the runs, with made-up results."""

import datetime
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rliable import metrics

from sb3_attention_ac.compare.comparison import compare
from sb3_attention_ac.compare.errors import CompareError, CorruptResultError
from sb3_attention_ac.compare.jobs import plan
from sb3_attention_ac.compare.randomness import own_randomness
from sb3_attention_ac.compare.report import write_report
from sb3_attention_ac.compare.scores import Reference, load_references, observed, references_for, scale
from sb3_attention_ac.compare.settings import Job, Protocol, Variant, differences, named_with_steps, with_own_steps
from sb3_attention_ac.compare.statistics import (
    interval,
    iqm,
    mean_interval,
    probability_of_improvement,
    score_matrices,
)
from sb3_attention_ac.compare.storage import Evaluation, Result, read_result, to_text, write_atomically
from sb3_attention_ac.compare.tables import at_equal_seconds, on_common_seconds, tables

PROTOCOL = Protocol(steps=100, evaluations=2, episodes=2)
REFERENCES = {"A": Reference(0, 100, "test"), "B": Reference(-10, 0, "test")}


def make_result(variant: str, env: str, seed: int, scores: tuple[float, ...], seconds: float = 1.0) -> Result:
    evaluations = tuple(
        Evaluation(point, 50 * point, seconds * point, (score - 1, score + 1), (5, 5)) for point, score in enumerate(scores)
    )
    job = Job(variant, "ppo", env, seed, {"policy": "MlpPolicy"}, PROTOCOL)
    provenance = {"command": "test", "time": "2026-01-01T00:00:00+00:00", "versions": {"python": "3"}, "hardware": {}}
    return Result(job, evaluations, 100, 2 * seconds, 0.5, 10, {"gamma": "0.99"}, provenance)


def make_results(seeds: int = 6) -> list[Result]:
    return [
        make_result(variant, env, seed, (low, middle + seed, high + seed), seconds)
        for seed in range(seeds)
        for env, low in (("A", 0.0), ("B", -10.0))
        for variant, middle, high, seconds in (("good", low + 5, low + 9, 2.0), ("poor", low + 1, low + 2, 1.0))
    ]


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_attention_ac.compare.statistics.REPETITIONS", 300)


# ---- storage


def test_result_survives_the_disk(tmp_path: Path) -> None:
    result = make_result("good", "A", 0, (0.0, 1.0, 2.0))
    write_atomically(tmp_path / "deep" / "result.json", to_text(result))
    assert read_result(tmp_path / "deep" / "result.json") == result
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["result.json"]


@pytest.mark.parametrize("harm", ["cut", "changed", "other", "empty"])
def test_corrupt_result_is_named(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "result.json"
    text = to_text(make_result("good", "A", 0, (0.0, 1.0, 2.0)))
    texts = {"cut": text[:-20], "changed": text.replace("99", "98"), "other": "[]", "empty": ""}
    path.write_text(texts[harm])
    with pytest.raises(CorruptResultError, match=r"result\.json is corrupt"):
        read_result(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_differences_are_named_with_their_path() -> None:
    there = {"protocol": {"steps": 5, "device": "cpu"}, "hyperparams": {"gamma": 0.9}}
    asked = {"protocol": {"steps": 6, "device": "cpu"}, "hyperparams": {}}
    assert differences(there, asked) == [
        "hyperparams.gamma: 0.9 there, 'not set' requested",
        "protocol.steps: 5 there, 6 requested",
    ]


def test_environment_with_own_steps() -> None:
    assert with_own_steps("A-v0", PROTOCOL) == ("A-v0", PROTOCOL)
    assert with_own_steps("A-v0=300", PROTOCOL) == ("A-v0", replace(PROTOCOL, steps=300))
    for given in ("A-v0=", "A-v0=1e5", "A-v0=-3"):
        with pytest.raises(CompareError, match="must be followed by a number of steps"):
            with_own_steps(given, PROTOCOL)
    with pytest.raises(CompareError, match="steps=0 was given"):
        with_own_steps("A-v0=0", PROTOCOL)
    with pytest.raises(CompareError, match="CartPole-v1 was given with 200 and with 300 steps"):
        plan([Variant("ppo", "ppo")], ["CartPole-v1=200", "CartPole-v1=300"], 1, PROTOCOL, "sb3")


@pytest.mark.parametrize(("kwargs", "named"), [({"seeds": [0, 1]}, r"seeds=\[0, 1\]"), ({"first_seed": -1}, "first_seed=-1")])
def test_seeds_are_whole_numbers(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(CompareError, match=f"{named} was given, but it must be a whole number"):
        plan([Variant("ppo", "ppo")], ["CartPole-v1"], **{"seeds": 2, **kwargs}, protocol=PROTOCOL, source="sb3")


def test_seeds_of_training_are_not_those_of_evaluations() -> None:
    for n_envs, highest in ((1, 9_997), (4, 9_994)):
        variant = Variant("ppo", "ppo", {"n_envs": n_envs})
        jobs = plan([variant], ["CartPole-v1"], 3, PROTOCOL, "sb3", first_seed=highest)
        assert jobs[-1].seed + n_envs == PROTOCOL.evaluation_seed
        with pytest.raises(CompareError, match=f"with 3 seeds it must be from 0 to {highest}"):
            plan([variant], ["CartPole-v1"], 3, PROTOCOL, "sb3", first_seed=highest + 1)


def test_environments_may_be_mapped_to_steps() -> None:
    assert named_with_steps({"A-v0": 300, "B-v0": None}) == named_with_steps(["A-v0=300", "B-v0"]) == ["A-v0=300", "B-v0"]


def test_seeds_follow_the_first() -> None:
    jobs = plan([Variant("ppo", "ppo")], ["CartPole-v1"], 3, PROTOCOL, "sb3", first_seed=100)
    assert [job.seed for job in jobs] == [100, 101, 102]


@pytest.mark.parametrize("name", ["steps", "evaluations", "episodes"])
def test_protocol_refuses_numbers_below_one(name: str) -> None:
    with pytest.raises(CompareError, match=f"{name}=0 was given, but it must be at least 1"):
        Protocol(**{name: 0})


def test_wrong_numbers_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"out": tmp_path / "file"}, "is a file"),
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"seconds": -3.0}, "seconds=-3.0"),
        ({"seconds": float("nan")}, "seconds=nan"),
    ]
    for arguments, words in wrong:
        with pytest.raises(CompareError, match=words):
            compare(["ppo"], ["CartPole-v1"], **{"out": tmp_path / "out", **arguments})


def test_own_randomness_leaves_no_trace() -> None:
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = np.random.rand()
    with own_randomness(7):
        np.random.rand(100)
    assert [first, np.random.rand()] == list(expected)


# ---- scores and statistics


def test_shipped_references_are_complete() -> None:
    references = load_references()
    assert references["CartPole-v1"].good == 500
    assert all(entry.good > entry.random for entry in references.values())


def test_own_references_go_first(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text("CartPole-v1: {random: 1, good: 2}\n")
    assert load_references(path)["CartPole-v1"].good == 2
    path.write_text("CartPole-v1: {random: 1}\n")
    with pytest.raises(CompareError, match=r"own\.yml must map environments"):
        load_references(path)
    path.write_text("CartPole-v1: 7\n")
    with pytest.raises(CompareError, match=r"at 'CartPole-v1' it has 7, not a mapping"):
        load_references(path)


@pytest.mark.parametrize(
    "scores", ["random: 500, good: 20", "random: 1, good: 1", "random: .nan, good: 500", "random: 1, good: .inf"]
)
def test_a_scale_goes_up(tmp_path: Path, scores: str) -> None:
    path = tmp_path / "references.yml"
    path.write_text(f"CartPole-v1: {{{scores}}}")
    with pytest.raises(CompareError, match="above random"):
        load_references(path)


def test_scores_without_references_use_the_range_seen() -> None:
    evaluations, runs, references = tables(make_results(), {"A": REFERENCES["A"]})
    assert references["A"] == REFERENCES["A"]
    assert (references["B"].random, references["B"].good) == (-10, 4)
    assert references["B"].origin == "lowest and highest score in this comparison"
    b = runs[runs["environment"] == "B"]
    assert b["final_normalized"].max() == 1
    assert references_for(evaluations.assign(score=3.0), {})["A"].random == 3


def test_one_score_without_a_reference_is_no_success() -> None:
    _, runs, _ = tables([make_result("good", "B", seed, (-200.0, -200.0, -200.0)) for seed in range(5)], {})
    assert (runs["final_normalized"] == 0).all()


def test_scale_says_what_it_rests_on() -> None:
    results = make_results()
    known, some, none = (tables(results, given)[2] for given in (REFERENCES, {"A": REFERENCES["A"]}, {}))
    assert scale(known) == "0 is a random policy, 1 a good one"
    assert "a good one; but on B, without reference scores, 0 is the lowest score of this comparison" in scale(some)
    assert "random" not in scale(none) and observed(none) == ["A", "B"]
    many = {f"env-{i}": replace(none["A"]) for i in range(30)} | {"A": REFERENCES["A"]}
    assert "but on 30 environments, without reference scores" in scale(many)


def test_area_is_the_mean_height_of_the_curve() -> None:
    _, runs, _ = tables([make_result("good", "A", 0, (0.0, 10.0, 30.0))], REFERENCES)
    assert runs["area"].item() == pytest.approx((5 + 20) / 2)
    assert runs["area_normalized"].item() == pytest.approx(0.125)
    assert runs["final"].item() == 30


def test_probability_of_improvement_is_that_of_rliable() -> None:
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, 5, size=(size, 3)).astype(float) for size in (6, 8))
    assert probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 3), (7, 4)])
def test_iqm_is_that_of_rliable(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).normal(size=(*shape, 2))
    expected = [metrics.aggregate_iqm(scores[..., index]) for index in range(2)]
    assert iqm(scores) == pytest.approx(np.array(expected))
    assert iqm(scores[..., 0]) == pytest.approx(expected[0])


def test_few_seeds_are_resampled_in_every_way() -> None:
    assert mean_interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)
    # 256 resamples, of which 6.4 are below the interval
    means = sorted(np.mean(draw) for draw in product((0.0, 1.0, 5.0, 9.0), repeat=4))
    assert mean_interval(np.array([0.0, 1.0, 5.0, 9.0])) == (3.75, means[6], means[-7])
    many = np.arange(9.0)
    assert mean_interval(many)[1:] == pytest.approx((2.31, 5.69), abs=0.15)  # 4 +- 1.96 sigma / 3


def test_intervals_are_the_same_each_time_and_cover_the_value() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 3))

    def mean(sample: np.ndarray) -> np.ndarray:
        return np.array([sample.mean()])

    first, second = interval(scores, mean), interval(scores, mean)
    assert first == second
    value, low, high = first
    assert low < value < high
    # The interval is for the mean of 24 numbers of standard deviation 1
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(24), rel=0.35)


def test_summaries_use_seeds_that_finished_everywhere() -> None:
    missing = Path("runs/good/B/seed-2")
    results = [result for result in make_results() if result.job.folder != missing]
    _, runs, _ = tables(results, REFERENCES)
    matrices = score_matrices(runs, "final")
    assert matrices["good"].shape == (5, 2)
    assert matrices["poor"].shape == (6, 2)


def test_curves_over_seconds_end_with_the_quickest_seed() -> None:
    results = [make_result("good", "A", seed, (0.0, 1.0, 2.0), seconds=seed + 1.0) for seed in range(2)]
    evaluations, _, _ = tables(results, REFERENCES)
    common = on_common_seconds(evaluations, points=3)
    assert common.groupby("seed")["seconds"].max().tolist() == [2, 2]
    assert common.groupby("seed")["score"].max().tolist() == [2, 1]
    assert at_equal_seconds(evaluations, 0)["score"].tolist() == [2, 1]
    assert at_equal_seconds(evaluations, 1.0)["score"].tolist() == [1, 0.5]
    assert at_equal_seconds(evaluations, 99.0)["seconds"].tolist() == [2, 2]


# ---- report


def test_report_holds_everything(tmp_path: Path) -> None:
    comparison = write_report(make_results(), ("poor on A, seed 9: <killed>",), REFERENCES, tmp_path, seconds=0.0)
    page = comparison.report.read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.replace("http-equiv", "")  # needs nothing from elsewhere
    assert "good wins." in page
    assert "poor on A, seed 9: &lt;killed&gt;" in page
    assert "At equal wall-clock time" in page
    table = (tmp_path / "table.md").read_text()
    assert "| good | **0.57" in table
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert len(runs) == 24 and not runs.isna().any(axis=None)
    assert sorted(path.suffix for path in (tmp_path / "figures").iterdir()) == [".pdf"] * 5 + [".png"] * 5


def test_report_of_one_algorithm_and_unfinished_ones(tmp_path: Path) -> None:
    alone = write_report([make_result("good", "A", 0, (0.0, 1.0, 2.0))], (), REFERENCES, tmp_path / "alone", None)
    assert "with 1 seed; there is nothing to compare it with" in alone.report.read_text()
    disjoint = [make_result("one", "A", 0, (0.0, 1.0, 2.0)), make_result("two", "B", 0, (0.0, 1.0, 2.0))]
    unfinished = write_report(disjoint, (), REFERENCES, tmp_path / "unfinished", None)
    assert "no summary over environments yet" in unfinished.report.read_text()
    assert "summaries use the 0 of 1 seeds of one" in unfinished.report.read_text()


def test_tables_are_tidy(tmp_path: Path) -> None:
    write_report(make_results(), (), REFERENCES, tmp_path, None)
    evaluations = pd.read_csv(tmp_path / "evaluations.csv")
    assert len(evaluations) == 2 * 2 * 6 * 3
    keys = ["algorithm", "environment", "seed", "point"]
    assert not evaluations.duplicated(keys).any()
    assert json.loads(evaluations[keys].head(1).to_json(orient="records")) == [
        {"algorithm": "good", "environment": "A", "seed": 0, "point": 0}
    ]


def test_report_without_references_claims_no_random_policy(tmp_path: Path) -> None:
    page = write_report(make_results(), (), {}, tmp_path, None).report.read_text()
    assert "0 is a random policy" not in page
    assert page.count("no environment has reference scores: 0 is the lowest score of this comparison") == 2


def test_report_of_environments_with_own_steps(tmp_path: Path) -> None:
    short = [make_result("good", "A", seed, (0.0, 1.0, 2.0)) for seed in range(2)]
    longer = [make_result("good", "B", seed, (0.0, 1.0, 2.0)) for seed in range(2)]
    longer = [replace(r, job=replace(r.job, protocol=replace(PROTOCOL, steps=300)), steps=300) for r in longer]
    page = write_report([*short, *longer], (), REFERENCES, tmp_path, None).report.read_text()
    assert "trained for 100 steps on A, 300 steps on B (or" in page
    assert "Unequal" not in page


def test_report_says_who_trained_longer_than_asked(tmp_path: Path) -> None:
    result = replace(make_result("good", "A", 0, (0.0, 1.0, 2.0)), steps=400)
    page = write_report([result], (), REFERENCES, tmp_path, None).report.read_text()
    assert "Unequal: good trained for 400 steps on A, not the requested 100;" in page


def wide_report(out: Path) -> Path:
    """With more columns than a page has room for, and words longer than a line."""
    results = [make_result(f"a-variant-with-a-long-name-{i}", "A", seed, (0.0, 1.0, 2.0)) for i in range(9) for seed in (0, 1)]
    return write_report(results, ("one on A, seed 0: broke; see /" + "folder/" * 60,), REFERENCES, out, None).report


@pytest.mark.slow
def test_wide_tables_scroll_inside_the_page(tmp_path: Path) -> None:
    page = wide_report(tmp_path).read_text()
    assert page.count("<table") == page.count('<div class="scroll"><table') >= 5
    assert ".scroll { overflow-x: auto; }" in page
    assert re.search(r"body \{[^}]*overflow-wrap: anywhere", page)  # paths in failures


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_no_browser_has_to_scroll_the_page(tmp_path: Path, width: int) -> None:
    page = wide_report(tmp_path)
    script = "<script>document.body.dataset.widths = innerWidth + ' ' + document.documentElement.scrollWidth</script>"
    page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    browser = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    shown = subprocess.run([*browser, page.as_uri()], capture_output=True, text=True, check=True, timeout=300).stdout
    assert f'data-widths="{width} {width}"' in shown


def test_report_says_who_was_stopped(tmp_path: Path) -> None:
    result = replace(make_result("good", "A", 0, (0.0, 1.0, 2.0)), steps=60)
    page = write_report([result], (), REFERENCES, tmp_path, None).report.read_text()
    assert "Unequal: good trained for 60 steps on A, not the requested 100; it was stopped." in page


@pytest.mark.parametrize("hyperparams", [{"env_kwargs": {"rewards": {0: 1.0, 1: 2.0}}}, {"start": datetime.date(2020, 1, 1)}])
def test_hyperparameters_arrive_as_they_are_given(hyperparams: dict[str, Any]) -> None:
    """JSON has no keys but texts, and no dates"""
    job = Job("ppo", "ppo", "A", 0, hyperparams, PROTOCOL)
    arrived = Job.from_dict(json.loads(json.dumps(job.to_dict())))
    assert arrived == job and arrived.identity() == job.identity()


@pytest.mark.parametrize("name", ["algos", "envs", "variants"])
def test_a_name_is_no_list(name: str) -> None:
    with pytest.raises(CompareError, match=r"gym_packages='popgym' was given, .* a tuple: gym_packages=\('popgym',\)"):
        Protocol(gym_packages="popgym")  # type: ignore[arg-type]
    with pytest.raises(CompareError, match=rf"{name}='ppo' was given, but it must be a list: {name}=\['ppo'\]"):
        compare(**{"algos": ["ppo"], "envs": ["CartPole-v1"], name: "ppo"})
