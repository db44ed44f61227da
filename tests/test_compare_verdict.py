"""Comparison: what the report claims, and what it must not claim."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_compare import REFERENCES, few_repetitions, make_result, make_results

from sb3_attention_ac.compare.scores import Reference
from sb3_attention_ac.compare.statistics import aggregate_curves, improvements, summaries
from sb3_attention_ac.compare.storage import Result
from sb3_attention_ac.compare.tables import tables
from sb3_attention_ac.compare.texts import summary_table, task_table
from sb3_attention_ac.compare.verdict import differing_settings, verdict

__all__ = ["few_repetitions"]  # for every test here too

EQUAL = "The settings that good and poor have in common are equal."


def judge(results: list[Result], known: dict[str, Reference] = REFERENCES, **changes: pd.DataFrame) -> list[str]:
    """
    :param results: Finished runs
    :param known: Reference scores
    :param changes: Tables to take instead of those of the results
    :return: The verdict
    """
    _, runs, references = tables(results, known)
    made = {"summaries": summaries(runs), "improvements": improvements(runs), "runs": runs, **changes}
    return verdict(made["summaries"], made["improvements"], made["runs"], references, [result.job for result in results])


def ends(variant: str, *lasts: float, env: str = "A") -> list[Result]:
    return [make_result(variant, env, seed, (0.0, 1.0, last)) for seed, last in enumerate(lasts)]


# ---- winners


def test_verdict_names_winner_margin_certainty_and_cost() -> None:
    sentences = judge(make_results())
    assert sentences[0] == f"good wins. {EQUAL}"
    assert "good 0.57" in sentences[1] and "poor" in sentences[1]
    assert "beats one of poor with probability 1.00 [1.00, 1.00]" in sentences[2]
    assert sentences[4] == "Cost: the median run of good 0.067 minutes at 25 steps/s, of poor 0.033 minutes at 50 steps/s."


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_few_seeds_name_no_winner_however_far_ahead(seeds: int) -> None:
    head = judge(make_results(seeds))[0]
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    assert head == f"No winner: {count} cannot tell, take at least 5. So far good has the highest score. {EQUAL}"


def test_two_seeds_would_name_a_winner_of_equals_too_often() -> None:
    """Why there is a smallest number: the share of pairs of equal algorithms that their interval tells apart."""
    generator = np.random.default_rng(0)

    def share(seeds: int, pairs: int = 100) -> float:
        scores = generator.normal(size=(pairs, 2, seeds))
        runs = [
            pd.DataFrame({"algorithm": name, "environment": "A", "seed": range(seeds), "final_normalized": values})
            for both in scores
            for name, values in zip("xy", both, strict=True)
        ]
        found = [improvements(pd.concat(runs[2 * pair : 2 * pair + 2])).iloc[0] for pair in range(pairs)]
        return float(np.mean([row["low"] > 0.5 or row["high"] < 0.5 for row in found]))

    assert share(2) > 0.25
    assert share(5) < 0.15


def test_few_seeds_of_one_are_named() -> None:
    results = [r for r in make_results() if r.job.variant == "good" or r.job.seed == 0]
    sentences = judge(results)
    assert "(IQM over runs with 1 to 6 seeds; " in sentences[1]
    assert sentences[0].startswith("No winner: 1 to 6 seeds cannot tell")
    assert sentences[-1].endswith("there are no intervals for poor.")
    results = [r for r in make_results() if r.job.variant == "good" or r.job.seed < 3]
    assert judge(results)[-1] == "Caution: with 3 seeds the intervals of poor come out too narrow; take at least 5."
    third = [replace(r, job=replace(r.job, variant="worst")) for r in make_results(4) if r.job.variant == "poor"]
    assert judge([*make_results(), *third])[0].startswith(
        "good has the highest score; it beats poor, but 4 seeds of worst cannot tell (take at least 5). "
    )


def test_one_seed_has_no_interval() -> None:
    _, runs, _ = tables(make_results(seeds=1), REFERENCES)
    assert summaries(runs)[["low", "high"]].isna().all(axis=None)
    assert improvements(runs)[["low", "high"]].isna().all(axis=None)
    sentences = judge(make_results(seeds=1))
    assert "(IQM over runs with 1 seed; " in sentences[1]
    assert not any("interval stands" in sentence for sentence in sentences)
    assert sentences[-1] == "Caution: one seed says nothing about how another would end; there are no intervals."


def test_verdict_says_that_none_is_good() -> None:
    _, runs, _ = tables(make_results(), REFERENCES)
    halved = summaries(runs)
    halved["value"] *= 0.5
    sentence = "None comes near a good policy: with more steps the order may change."
    assert sentence in judge(make_results(), summaries=halved)
    assert sentence not in judge(make_results(), {}, summaries=halved)  # 1 is no good policy there


def test_verdict_says_when_the_winner_is_hardly_better() -> None:
    results = [*ends("one", 10.0, 10.1, 10.2, 10.3, 10.4), *ends("two", 9.9, 10.05, 10.1, 10.1, 10.2)]
    _, runs, _ = tables(results, REFERENCES)
    head = judge(results, improvements=improvements(runs).assign(low=0.6))[0]
    assert head.startswith("one wins, but not by much: the intervals of its score and of two's overlap.")


def test_verdict_says_when_the_highest_score_loses_more_often() -> None:
    """Far ahead on one environment of five, a little behind on the four others."""
    scores = {"A": (80.0, 20.0), "B": (50.0, 55.0), "C": (50.0, 55.0), "D": (50.0, 55.0), "E": (50.0, 55.0)}
    results = [
        make_result(name, env, seed, (0.0, 1.0, last + 0.1 * seed))
        for env, both in scores.items()
        for name, last in zip(("one", "two"), both, strict=True)
        for seed in range(5)
    ]
    known = dict.fromkeys(scores, Reference(0, 100, "test"))
    overall = summaries(tables(results, known)[1])
    overall.loc[(overall["algorithm"] == "one") & (overall["summary"] == "IQM"), "value"] = 0.9
    sentences = judge(results, known, summaries=overall)
    assert sentences[0].startswith(
        "No clear winner: one has the highest score, yet a run of two beats one of it on the same environment more often than "
        "not."
    )
    assert "A run of one beats one of two with probability 0.20 [0.20, 0.20]" in sentences[2]


def test_verdict_claims_nothing_it_cannot() -> None:
    head = judge([*ends("one", 10, 11, 12, 10, 11.5), *ends("two", 10, 11, 12, 10, 11)])[0]
    assert head.startswith("No clear winner: one has the highest score, but these runs do not distinguish it from two.")


# ---- equal scores


def test_equal_scores_have_no_highest() -> None:
    results = [*ends("one", 3, 4, 5, 6, 7), *ends("two", 7, 6, 5, 4, 3), *ends("three", 1, 1, 1, 1, 1)]
    assert judge(results)[0].startswith("No winner: one and two share the highest score. ")
    assert judge([r for r in results if r.job.seed < 2])[0].startswith("No winner: 2 seeds cannot tell")


def test_both_rows_of_a_pair_hold_their_probability() -> None:
    _, runs, _ = tables([*ends("one", 3, 4, 5, 6, 7), *ends("two", 2, 3, 6.5, 2, 3)], REFERENCES)
    pairs = improvements(runs)
    assert len(pairs) == 2 and (pairs["low"] <= pairs["probability"]).all() and (pairs["probability"] <= pairs["high"]).all()
    assert pairs["probability"].tolist() == pytest.approx([0.8, 0.2])


def test_curves_over_environments_are_of_the_middle_half() -> None:
    rows = [("one", "A", seed, 0, float(score)) for seed, score in enumerate((0, 1, 2, 3, 100, 2, 1, 3))]
    curve = aggregate_curves(pd.DataFrame(rows, columns=["algorithm", "environment", "seed", "point", "score_normalized"]))
    assert curve["value"].tolist() == [2.0]


def test_equal_scores_have_no_bold_one() -> None:
    results = [*ends("one", 3, 4, 5, 6, 7), *ends("two", 7, 6, 5, 4, 3), *ends("three", 1, 1, 1, 1, 1)]
    results += [*ends("one", 5, 5, 5, 5, 5, env="B"), *ends("two", 4, 4, 4, 4, 4, env="B")]
    _, runs, references = tables(results, REFERENCES)
    table = task_table(runs, "final", "", "")
    assert {row[0]: column for row, column in zip(table.rows, [0, 1], strict=True)} == {"A": 0, "B": 1}
    assert table.best == {(1, 1)}  # one on B; nobody on A
    same = [r for r in results if r.job.env == "A" and r.job.variant != "three"]
    _, runs, references = tables(same, REFERENCES)
    assert not summary_table(summaries(runs), runs, references).best


def test_few_seeds_have_no_bold_one() -> None:
    for seeds in (4, 5):
        _, runs, references = tables(make_results(seeds), REFERENCES)
        assert bool(task_table(runs, "final", "", "").best) == (seeds == 5)
        alone = runs[runs["algorithm"] == runs["algorithm"].iloc[0]]
        assert not task_table(alone, "final", "", "").best  # nothing to be better than
        assert bool(summary_table(summaries(runs), runs, references).best) == (seeds == 5)


def test_bold_needs_an_interval_above_all_others() -> None:
    """A higher mean alone may be chance; and a mean above a rival's interval is not an interval above it"""
    for lowest, expected in ((6.5, True), (2.0, False)):
        results = [*ends("one", lowest, 7, 8, 9, 10), *ends("two", 3, 4, 5, 6, 6), *ends("three", 1, 1, 1, 1, 2)]
        _, runs, references = tables(results, REFERENCES)
        assert bool(task_table(runs, "final", "", "").best) == expected
        best = summary_table(summaries(runs), runs, references).best
        assert ((0, 1) in best) == ((0, 3) in best) == expected  # IQM, and the optimality gap, of which less is better


def test_numbers_that_look_equal_have_no_bold_one() -> None:
    results = [*ends("one", 499.9, 500, 500, 500, 500), *ends("two", 500, 500, 500, 500, 500)]
    _, runs, references = tables(results, {"A": Reference(0, 500, "test")})
    assert not task_table(runs, "final", "", "").best
    final = summary_table(summaries(runs), runs, references)
    assert "1.00" in final.rows[0][1] and "1.00" in final.rows[1][1]
    assert not {column for _, column in final.best} & {1, 2, 3}


# ---- settings


def changed(results: list[Result], variant: str, **hyperparams: object) -> list[Result]:
    return [
        replace(r, job=replace(r.job, hyperparams={**r.job.hyperparams, **hyperparams})) if r.job.variant == variant else r
        for r in results
    ]


def test_headline_says_whether_settings_differ() -> None:
    results = changed(make_results(), "good", n_steps=64, policy="MlpPolicy")
    assert judge(results)[0] == "good wins. The settings of good and poor differ: n_steps."
    many = changed(results, "poor", gamma=0.9, n_envs=8, normalize=True, frame_stack=4)
    assert judge(many)[0].endswith("The settings of good and poor differ: frame_stack, gamma, n_envs, n_steps and 1 more.")


def test_settings_written_in_two_ways_are_equal() -> None:
    results = changed(make_results(), "good", policy_kwargs="dict(net_arch=[64], ortho_init=False)", learning_rate="lin_0.1")
    same = changed(results, "poor", policy_kwargs={"net_arch": [64], "ortho_init": False}, learning_rate="lin_0.1")
    assert judge(same)[0] == "good wins. The settings that good and poor have in common are equal."
    for other in ("dict(net_arch=[32], ortho_init=False)", "dict(net_arch=[64], activation_fn=nn.ReLU)", "dict(("):
        assert judge(changed(same, "poor", policy_kwargs=other))[0].endswith("differ: policy_kwargs.")


def test_a_default_is_a_setting() -> None:
    """2048 is what PPO does where its file says nothing; RecurrentPPO takes 128."""
    same = [result.job for result in changed(make_results(1), "good", n_steps=2048, n_envs=1, normalize=False)]
    assert differing_settings(same, "good", ["poor"]) == []
    other = [replace(job, algo="ppo_lstm") if job.variant == "poor" else job for job in same]
    assert differing_settings(other, "good", ["poor"]) == ["batch_size", "n_steps"]


# ---- what intervals do not cover


def test_verdict_says_what_intervals_do_not_cover() -> None:
    (sentence,) = [s for s in judge(make_results()) if s.startswith("Each interval")]
    assert sentence == (
        "Each interval stands on its own: it says what other seeds would give on these 2 environments, not what others would. "
        "Across 2 environments one by one, expect about one interval in 20 to miss."
    )
    third = [replace(r, job=replace(r.job, variant="third")) for r in make_results() if r.job.variant == "poor"]
    (sentence,) = [s for s in judge([*make_results(), *third]) if s.startswith("Each interval")]
    assert "Across 3 pairs of algorithms and 2 environments one by one" in sentence
    alone = judge([r for r in make_results() if r.job.env == "A"])
    assert (
        "Each interval stands on its own: it says what other seeds would give on this environment, not what others would."
        in alone
    )
