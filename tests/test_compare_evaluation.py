"""Comparison: evaluations see the episodes of the environment, whatever wrappers make of them, and runs that diverge."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_compare import REFERENCES, few_repetitions, make_result, make_results
from test_compare_settings import one_job

from sb3_attention_ac import AAC
from sb3_attention_ac.compare import evaluate, figures
from sb3_attention_ac.compare.episodes import EpisodeRecorder
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.jobs import read_finished
from sb3_attention_ac.compare.report import write_report
from sb3_attention_ac.compare.run import _has_diverged, run
from sb3_attention_ac.compare.settings import Protocol
from sb3_attention_ac.compare.statistics import mean_curves
from sb3_attention_ac.compare.storage import Evaluation, Result, read_result
from sb3_attention_ac.compare.tables import at_equal_seconds, on_common_seconds, tables, without_diverged

__all__ = ["few_repetitions"]  # for every test here too
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pygame"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:popgym"),
]

PROTOCOL = Protocol(steps=64, evaluations=2, episodes=3)


class Clock(gym.Env[Any, Any]):
    """
    Ticks; a tick is worth 1, and a hundredth more for each seed above 10,000 that it was started from.

    :param length: Ticks of an episode
    :param worth: Of a tick
    """

    observation_space = spaces.Box(-1, 1, (1,))
    action_space: gym.Space[Any] = spaces.Box(-1, 1, (1,))

    def __init__(self, length: float = 10, worth: float | str = 1.0) -> None:
        self.length, self.worth, self.ticks, self.extra = length, float(worth), 0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.ticks, self.extra = 0, 0.0 if seed is None else (seed % 10_000) / 100
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.ticks += 1
        return np.zeros(1, np.float32), self.worth + self.extra, self.ticks >= self.length, False, {}


class Quitter(gym.Wrapper[Any, Any, Any, Any]):
    """Terminates an episode after three steps, no time limit."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.done_steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.done_steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or self.done_steps == 3, truncated, info


class Lives(gym.Wrapper[Any, Any, Any, Any]):
    """Every fourth tick costs a life, which ends the episode for the agent; the game goes on, as with ``EpisodicLifeEnv``."""

    over = True

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.over:
            self.over = False
            return super().reset(**kwargs)
        return super().step(self.action_space.sample())[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.over = terminated or truncated
        return observation, reward, terminated or self.unwrapped.ticks % 4 == 0, truncated, info  # type: ignore[attr-defined]


class Trials(gym.Wrapper[Any, Any, Any, Any]):
    """Two episodes in one."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.trial = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated and self.trial == 0:
            self.trial, terminated = 1, False
            observation, _ = super().reset()
        return observation, reward, terminated, truncated, info


class Forbidding(Clock):
    """A clock that forbids two of three actions in each tick, others in the next; a forbidden one costs 1."""

    action_space = spaces.Discrete(3)

    def action_masks(self) -> np.ndarray:
        allowed: np.ndarray = np.arange(3) == self.ticks % 3
        return allowed

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        allowed = self.action_masks()[action]
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(allowed) - 1, terminated, truncated, info


@pytest.fixture
def clock() -> Iterator[str]:
    gym.register("Clock-v0", Clock)
    yield "Clock-v0"
    del gym.registry["Clock-v0"]


def evaluated(out: Path, env: str, **changes: Any) -> Result:
    return run(one_job("ppo", env, PROTOCOL, "sb3", n_steps=32, batch_size=32, **changes), out, "test")


def short(name: str, **arguments: Any) -> list[Any]:
    return [{f"gymnasium.wrappers.{name}": arguments}]


# ---- whatever ends episodes


@pytest.mark.parametrize(
    ("wrapper", "length"),
    [
        (None, 10),
        (short("TimeLimit", max_episode_steps=4), 4),
        (["test_compare_evaluation.Quitter"], 3),
        (["test_compare_evaluation.Lives"], 10),
        (["test_compare_evaluation.Trials"], 20),
        ([*short("TimeLimit", max_episode_steps=6), "test_compare_evaluation.Trials"], 6),
        (["test_compare_evaluation.Trials", *short("TimeLimit", max_episode_steps=15)], 15),
    ],
    ids=["none", "time limit", "termination", "lives", "trials", "trials of a limit", "limit of trials"],
)
def test_evaluations_end_with_the_episodes_the_agent_sees(
    tmp_path: Path, clock: str, wrapper: list[Any] | None, length: int
) -> None:
    result = evaluated(tmp_path, clock, env_wrapper=wrapper)
    for evaluation in result.evaluations:
        assert evaluation.lengths == (length,) * 3
        # Each starts from its own seed, in every evaluation
        seeded = min(length, 10)
        assert evaluation.returns == pytest.approx([length + seeded * extra for extra in (0.0, 0.01, 0.02)])


@pytest.mark.parametrize("algo", ["aac", "maskable_ppo", "ppo"])
def test_what_takes_masks_is_evaluated_with_them(tmp_path: Path, algo: str) -> None:
    gym.register("Forbidding-v0", Forbidding)
    try:
        result = run(one_job(algo, "Forbidding-v0", PROTOCOL, "zoo", n_steps=32, batch_size=32), tmp_path, "test")
    finally:
        del gym.registry["Forbidding-v0"]
    returns = [episode for evaluation in result.evaluations for episode in evaluation.returns]
    assert (min(returns) < 0) == (algo == "ppo")


class Dialogue(Clock):
    """Each tick is worth what the action says, an observation is the number of ticks."""

    observation_space = spaces.Box(0, 100, (1,))
    action_space = spaces.Box(0, 200, (1,))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.ticks += 1
        return np.full(1, self.ticks, np.float32), float(action[0]), self.ticks >= self.length, False, {}


class Asked:
    """A model whose actions say what it was asked: 10 for an episode's start, 100 for the state of the tick before."""

    def __init__(self, env: Any = None) -> None:
        self.deterministic: list[bool] = []
        self.env = env

    def get_env(self) -> Any:
        return self.env

    get_vec_normalize_env = get_env

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        self.deterministic.append(deterministic)
        ticks = obs[:, 0]
        goes_on = np.zeros(len(ticks), dtype=bool) if state is None else (state[0] == ticks - 1) & ~episode_start
        return (100.0 * goes_on + 10.0 * (episode_start & (ticks == 0)))[:, None], (ticks,)


def recorded(*lengths: int) -> evaluate.RecordedEnv:
    recorders = [EpisodeRecorder(Dialogue(length)) for length in lengths]
    return evaluate.RecordedEnv(DummyVecEnv([lambda r=r: r for r in recorders]), [r.episodes for r in recorders])  # type: ignore[misc]


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluations_pass_on_states_starts_and_whether_to_sample(deterministic: bool) -> None:
    callback = evaluate.EvaluationCallback(lambda: recorded(4, 10), replace(PROTOCOL, deterministic=deterministic))
    model = Asked()
    callback.model = model  # type: ignore[assignment]
    for _ in range(2):
        assert callback._evaluate() == ((310, 910), (4, 10))
    assert set(model.deterministic) == {deterministic}


def test_evaluations_are_normalized_as_training_is_now() -> None:
    training, kept = VecNormalize(recorded(4).env), recorded(4)
    own = VecNormalize(kept.env, training=False)
    callback = evaluate.EvaluationCallback(lambda: evaluate.RecordedEnv(own, kept.episodes), PROTOCOL)
    callback.model = Asked(training)  # type: ignore[assignment]
    for mean in (3.0, 5.0):
        training.obs_rms.mean[:] = mean  # type: ignore[union-attr]
        callback._begin()
        assert own.obs_rms.mean == mean  # type: ignore[union-attr]


def test_rewards_are_raw(tmp_path: Path, clock: str) -> None:
    wrapper = [*short("TimeLimit", max_episode_steps=5), *short("ClipReward", max_reward=0.1)]
    for result in (
        evaluated(tmp_path, clock, env_wrapper=wrapper),
        evaluated(tmp_path, clock, env_wrapper=None, normalize=True),
    ):
        assert result.evaluations[-1].returns[0] == result.evaluations[-1].lengths[0]


def test_small_rewards_are_not_rounded(tmp_path: Path, clock: str) -> None:
    result = evaluated(tmp_path, clock, env_kwargs={"worth": 1e-8}).evaluations[-1]
    assert result.returns[0] == pytest.approx(1e-8 * result.lengths[0])


def test_training_returns_are_kept(tmp_path: Path, clock: str) -> None:
    result = evaluated(tmp_path, clock, env_wrapper=short("TimeLimit", max_episode_steps=4))
    assert result.evaluations[0].training is None
    # 32 steps are eight episodes of four ticks; the very first starts from seed 0, as the others do without one
    assert [evaluation.training for evaluation in result.evaluations[1:]] == [4.0, 4.0]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("wrapper", [short("TimeLimit", max_episode_steps=4), ["test_compare_evaluation.Quitter"]], ids=str)
def test_training_by_evaluations_ends_with_the_episodes_too(tmp_path: Path, clock: str, wrapper: list[Any]) -> None:
    """ARS trains by SB3's evaluate_policy, which believes Monitor alone."""
    job = one_job("ars", clock, PROTOCOL, "sb3", env_wrapper=wrapper, n_delta=2)
    assert run(job, tmp_path, "test").steps >= 64


def test_an_episode_without_an_end_is_an_error(tmp_path: Path, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LONGEST_EPISODE", 50)
    with pytest.raises(CompareError, match=r"has not ended after 50 steps\. Give the environment a time limit"):
        evaluated(tmp_path, clock, env_kwargs={"length": math.inf})


# ---- runs that diverge


@pytest.mark.filterwarnings("ignore:.*The reward is an? (NaN|inf) value", "ignore::RuntimeWarning")
def test_returns_that_are_not_finite_are_a_result(tmp_path: Path, clock: str) -> None:
    for worth in ("nan", "inf"):
        result = evaluated(tmp_path / worth, clock, env_kwargs={"worth": worth})
        assert result.diverged
        (path,) = (tmp_path / worth).glob("runs/*/*/*/result.json")
        assert read_result(path).diverged
        assert list(read_finished([result.job], tmp_path / worth)) == [result.job.folder]  # it is not run again


@pytest.mark.parametrize("algo", ["ppo", "aac"])  # aac stops before its parameters are spoilt
def test_a_run_whose_network_diverges_is_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str], algo: str) -> None:
    job = one_job(algo, "Pendulum-v1", PROTOCOL, "sb3", n_steps=16, batch_size=16, learning_rate=1e30)
    result = run(job, tmp_path, "test")
    assert [evaluation.point for evaluation in result.evaluations] == [0, 1, 2]
    assert math.isfinite(result.evaluations[0].score) and result.diverged
    assert 0 < result.steps < 64
    assert "recorded as a run that diverged" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", [PPO, AAC])
def test_parameters_of_which_no_action_comes_have_diverged(algorithm: Any) -> None:
    """They are finite still"""
    model = algorithm("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16)
    with th.no_grad():
        model.policy.action_net.weight.fill_(3e38)
        model.policy.action_net.weight[1].neg_()
    with pytest.raises(ValueError) as raised:
        model.predict(np.ones(4, dtype=np.float32))
    assert _has_diverged(model, raised.value) and not _has_diverged(model, ValueError("anything else"))


def test_values_that_are_no_numbers_have_diverged_though_actions_come_of_them(tmp_path: Path) -> None:
    settings = {"learning_rate": 1e30, "learning_starts": 8, "batch_size": 8, "buffer_size": 100}
    assert run(one_job("dqn", "CartPole-v1", PROTOCOL, "sb3", **settings), tmp_path, "test").diverged


def test_an_observation_that_is_not_finite_is_an_accident() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16)
    model._last_obs[:] = np.nan
    with pytest.raises(ValueError) as raised:
        model.predict(model._last_obs)
    assert not _has_diverged(model, raised.value)


def test_a_crash_with_a_finite_network_stays_a_crash(tmp_path: Path, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Clock.step

    def breaks(self: Clock, action: Any) -> Any:
        if self.extra == 0 and self.ticks == 7:
            raise OSError("the spring broke")
        return steps(self, action)

    evaluations: list[int] = []
    play = evaluate.EvaluationCallback._record
    monkeypatch.setattr(
        evaluate.EvaluationCallback, "_record", lambda self, point: (evaluations.append(point), play(self, point))
    )
    monkeypatch.setattr(Clock, "step", breaks)
    with pytest.raises(OSError, match="the spring broke"):
        run(
            one_job("ppo", clock, replace(PROTOCOL, evaluation_seed=10_001), "sb3", n_steps=32, batch_size=32),
            tmp_path,
            "test",
        )
    assert evaluations == [0]  # what crashed is not evaluated
    assert not list(tmp_path.glob("runs/*/*/*/result.json"))


def diverging(result: Result, value: float = math.nan, points: int = 1) -> Result:
    def bad(evaluation: Evaluation) -> Evaluation:
        return replace(evaluation, returns=(value, 1.0))

    return replace(result, evaluations=(*result.evaluations[:-points], *map(bad, result.evaluations[-points:])))


def test_diverged_runs_stay_in_the_report_in_words(tmp_path: Path) -> None:
    results = [
        diverging(r, -math.inf) if (r.job.variant, r.job.env) == ("good", "A") and r.job.seed in (1, 4) else r
        for r in make_results()
    ]
    page = write_report(results, (), REFERENCES, tmp_path, 0.0).report.read_text()
    assert "Diverged: 2 of 6 runs of good on A (seeds 1, 4) ended in returns that are not finite." in page
    text = (tmp_path / "table.md").read_text()
    assert "(2 of 6 diverged)" in text
    assert "good: 6" not in text and "Incomplete" not in text
    final = text.split("### Final score")[1].split("###")[0]
    (row,) = [line for line in final.splitlines() if line.startswith("| A ")]
    assert "**" not in row.split("|")[2]  # the mean of what is left is not the best


def test_a_run_that_diverged_for_a_while_is_named(tmp_path: Path) -> None:
    """Its last return counts, its curve does not: tables that differ in how many runs they count say why"""
    results = make_results()
    first = results[0]
    evaluations = (first.evaluations[0], replace(first.evaluations[1], returns=(math.inf, 1.0)), first.evaluations[2])
    page = write_report([replace(first, evaluations=evaluations), *results[1:]], (), REFERENCES, tmp_path, 0.0).report
    job = first.job
    assert f"Diverged for a while: 1 of 6 runs of {job.variant} on {job.env} (seed {job.seed}) had" in page.read_text()
    final, whole = ((tmp_path / "table.md").read_text().split(f"### {name}")[1].split("###")[0] for name in ("Final", "Whole"))
    assert "diverged" not in final and "(1 of 6 diverged)" in whole


def test_an_environment_on_which_everything_diverges_stays_in_the_report(tmp_path: Path) -> None:
    results = [diverging(r, points=2) if r.job.env == "B" else r for r in make_results()]
    for known in (REFERENCES, {}):
        comparison = write_report(results, (), known, tmp_path, 0.0)
        text = (tmp_path / "table.md").read_text()
        assert "| B | diverged | diverged |" in text
        assert "6 of 6 runs of good on B" in text and "6 of 6 runs of poor on B" in text
        assert set(comparison.summaries["seeds"]) == {6}
        assert comparison.runs.loc[comparison.runs["environment"] == "B", "final"].isna().all()


def test_curves_and_equal_seconds_are_those_of_runs_that_did_not_diverge() -> None:
    results = [make_result("one", "A", seed, (0.0, 1.0 + seed, 2.0 * seed), seconds=100.0) for seed in range(3)]
    short = diverging(make_result("one", "A", 1, (0.0, 5.0), seconds=12.0))
    evaluations = tables([results[0], short, results[2]], REFERENCES)[0]
    finite = without_diverged(evaluations)
    curves = mean_curves(finite, "steps")
    assert curves["mean"].tolist() == [0.0, 2.0, 2.0] and curves["steps"].tolist() == [0, 50, 100]
    (axis,) = figures.learning_curves(curves, "steps", figures.palette(["one"])).axes
    assert len(axis.collections) == 1  # the shade
    assert on_common_seconds(finite)["seconds"].max() == 200.0
    equal = at_equal_seconds(evaluations, 0).set_index("seed")
    assert equal["seconds"].tolist() == [200.0] * 3 and equal["score"].isna().tolist() == [False, True, False]


def test_a_colour_stands_for_one_algorithm_in_all_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no seed that finished everywhere is not in the summaries."""
    results = [r for r in make_results() if (r.job.variant, r.job.env) != ("good", "B")]
    given: list[dict[str, Any]] = []
    for name in ("learning_curves", "summary_intervals", "aggregate_curves"):
        draw = getattr(figures, name)
        monkeypatch.setattr(figures, name, lambda *a, draw=draw: (given.append(a[-1]), draw(*a))[1])
    write_report(results, (), REFERENCES, tmp_path, None)
    assert len(given) == 4 and all(colours == given[0] for colours in given) and list(given[0]) == ["good", "poor"]


def test_a_diverged_run_counts_as_the_lowest() -> None:
    """Left out, it would leave its algorithm with the runs that went well."""
    lasts = {"one": (90.0, math.nan), "two": (-20.0, 50.0)}
    results = [
        make_result(name, "A", seed, (0.0, 1.0, last)) for name, both in lasts.items() for seed, last in enumerate(both)
    ]
    _, runs, _ = tables(results, REFERENCES)
    assert runs["final_normalized"].tolist() == [0.9, -0.2, -0.2, 0.5]
    assert runs["diverged"].tolist() == [False, True, False, False]
    _, runs, _ = tables([*results[:2], results[3]], REFERENCES)
    assert runs["final_normalized"].tolist() == [0.9, 0.0, 0.5]  # no lower than a random policy


def test_an_environment_without_a_finished_run_is_named(tmp_path: Path) -> None:
    report = write_report(make_results(), ("good on C, seed 0: broke",), REFERENCES, tmp_path, None, ["C", "D"]).report
    assert "Missing: no run has finished on C, D. The numbers here do not cover it." in report.read_text()
