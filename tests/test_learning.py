"""Learning, on real environments. Slow: minutes each."""

import statistics

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_attention_ac.envs  # noqa: F401  (registers the mazes)
from sb3_attention_ac import AAC

FAST = {
    "n_steps": 64,
    "batch_size": 256,
    "n_epochs": 10,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "learning_rate": 1e-3,
    "device": "cpu",
}


def score(model, env_id: str) -> float:
    env = make_vec_env(env_id, n_envs=5, seed=1000)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=20, deterministic=True)
    return float(mean)


@pytest.mark.slow
@pytest.mark.parametrize("policy_kwargs", [{}, {"memory_actor": True}])
def test_cartpole(policy_kwargs):
    """The median of three runs: at a constant learning rate one in eight with a memory ends below."""
    scores = []
    for seed in range(3):
        env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
        model = AAC("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=seed, **FAST)
        scores.append(score(model.learn(40_960), "CartPole-v1"))
    assert statistics.median(scores) > 400


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_save_load_continue(tmp_path):
    """Two halves through a zip are as good as the whole in one go: on average, a single seed of 20k steps says little."""
    wholes, parts = [], []
    for seed in range(1, 5):
        env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
        whole = AAC("MlpPolicy", env, seed=seed, **FAST).learn(20_480)
        AAC("MlpPolicy", env, seed=seed, **FAST).learn(10_240).save(tmp_path / "half")
        halves = AAC.load(tmp_path / "half", env=env, device="cpu").learn(10_240, reset_num_timesteps=False)
        assert halves.num_timesteps == whole.num_timesteps == 20_480
        wholes.append(score(whole, "CartPole-v1"))
        parts.append(score(halves, "CartPole-v1"))
    assert sum(parts) > 0.8 * sum(wholes)


@pytest.mark.slow
def test_landmarks_by_surprise_keep_a_cue_that_comes_later():
    """The second corridor has a cue of its own and is longer than the window: guessing it gives 1 of 2."""
    corridors = {"n_corridors": 2, "corridor_length": 40}
    model = AAC(
        "MlpPolicy",
        make_vec_env("EndlessTMaze-v0", 16, seed=0, env_kwargs=corridors),
        n_steps=128,
        n_epochs=5,
        learning_rate=lambda progress_remaining: 1e-3 * progress_remaining,
        policy_kwargs=dict(
            memory_actor=True, share_encoder=True, context_length=4, age_input=True, n_landmarks=6, landmark_rule="surprise"
        ),
        seed=0,
        device="cpu",
    )
    model.learn(150_000)
    env = make_vec_env("EndlessTMaze-v0", 10, seed=1, env_kwargs=corridors)
    assert evaluate_policy(model, env, n_eval_episodes=50)[0] > 1.7
