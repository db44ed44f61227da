"""The masked prediction: what is left out is hidden, and each target can be learned."""

import numpy as np
import pytest
import torch as th
from sb3_attention_ac.checks import resolve_aux_loss
from sb3_attention_ac.history import RecentTrajectories, trajectory_recency
from stable_baselines3.common.env_util import make_vec_env
from test_run import SMALL, TINY, random_env
from trajectories import fill, make_buffer, make_policy

from sb3_attention_ac import AAC
from sb3_attention_ac.auxiliary import AuxiliaryBatch, _last_visible, sample_mask

ALL = ("return", "observation", "action", "reward", "contrastive")


def filled_buffer(policy, n_steps=12, n_envs=3, episode_end=0.2):
    buffer, rng = make_buffer(policy, n_steps, n_envs), np.random.default_rng(0)
    starts = fill(buffer, rng, np.ones(n_envs, dtype=bool), episode_end)
    fill(buffer, rng, starts, episode_end)
    buffer.returns = rng.normal(size=buffer.values.shape).astype(np.float32)
    return buffer


def drawn(policy, **kwargs) -> AuxiliaryBatch:
    recent = RecentTrajectories(0)
    recent.add(filled_buffer(policy, **kwargs))
    return recent.sample(8, 10)


@pytest.mark.parametrize("shared", [False, True])
def test_left_out_memories_are_hidden(shared):
    """Nothing that is predicted changes when s_t, a_t, r_t of the hidden memories change, in any token."""
    kwargs = {"memory_actor": True, "share_encoder": True} if shared else {}
    policy = make_policy(4, aux_targets=ALL, n_layers=2, **kwargs)
    windows = drawn(policy).windows
    hidden = sample_mask(th.ones_like(windows.episode_starts), 0.3)
    before = policy.auxiliary._gather(policy, windows, hidden)
    after_hidden = th.nn.functional.pad(hidden, (1, 0))[:, :-1]
    other = windows._replace(
        observations=th.where(hidden.unsqueeze(-1), 5.0, windows.observations),
        previous_actions=th.where(
            after_hidden.unsqueeze(-1), 1 - windows.previous_actions.clamp(0, 1), windows.previous_actions
        ),
        previous_rewards=th.where(after_hidden, 7.0, windows.previous_rewards),
    )
    th.testing.assert_close(policy.auxiliary._gather(policy, other, hidden), before)
    visible = windows._replace(observations=th.where(hidden.unsqueeze(-1), windows.observations, 5.0))
    assert not th.allclose(policy.auxiliary._gather(policy, visible, hidden), before)


def test_rewards_are_hidden_from_the_return():
    """The return is a sum of rewards: with it as a target, no reward may be seen."""
    policy = make_policy(4, aux_targets=("return",))
    windows = drawn(policy).windows
    hidden = sample_mask(th.ones_like(windows.episode_starts), 0.3)
    other = windows._replace(previous_rewards=windows.previous_rewards + 3)
    gather = policy.auxiliary._gather
    th.testing.assert_close(gather(policy, other, hidden), gather(policy, windows, hidden))


def test_mask_ratio():
    th.manual_seed(0)
    eligible = th.rand(200, 60) < 0.8
    for ratio in (0.1, 0.25, 0.5):
        hidden = sample_mask(eligible, ratio)
        assert not (hidden & ~eligible).any()
        assert abs(hidden[eligible].float().mean() - ratio) < 0.03


def test_last_visible_is_the_newest_of_the_same_episode():
    features = th.arange(6.0).reshape(1, 6, 1) + 1
    hidden = th.tensor([[False, True, True, True, True, False]])
    episode_ids = th.tensor([[0, 0, 0, 1, 1, 1]])
    assert _last_visible(features, hidden, episode_ids).flatten().tolist() == [1, 1, 1, 0, 0, 6]


def test_trajectory_recency():
    episode_ids = np.array([[3, 0], [3, 1], [4, 1], [4, 1], [5, 1]])  # ends: 3 at 1, 4 at 3, 5 at 4; 0 at 0, 1 at 4
    recency, count = trajectory_recency(episode_ids)
    assert count == 5
    assert recency[:, 0].tolist() in ([3, 3, 2, 2, 0], [3, 3, 2, 2, 1])
    assert recency[:, 1].tolist() in ([4, 1, 1, 1, 1], [4, 0, 0, 0, 0])


@pytest.mark.parametrize("n_trajectories", [0, 1, 3, 20])
def test_draws_from_the_most_recent_trajectories(n_trajectories):
    policy, recent = make_policy(4), RecentTrajectories(n_trajectories)
    buffer, rng, starts = make_buffer(policy, 6, 2), np.random.default_rng(0), np.ones(2, dtype=bool)
    counts = []
    for rollout in range(8):
        starts = fill(buffer, rng, starts, 0.3)
        buffer.rewards[:] = rollout
        buffer.returns = np.full_like(buffer.values, rollout)
        recent.add(buffer)
        counts.append(trajectory_recency(buffer.episode_ids)[1])
    seen = set()
    for _ in range(40):
        batch = recent.sample(4, 6)
        seen |= {int(r) for r in batch.returns.unique()}
        assert batch.eligible.any()
    needed = next(k for k in range(1, 9) if k == 8 or sum(counts[-k:]) >= max(n_trajectories, 1))
    assert seen == set(range(8 - needed, 8))


@pytest.mark.parametrize("aux_loss", ["contrastive", "value", "prediction", ["action", "contrastive"]])
def test_logged_beside_their_baselines(aux_loss):
    model = AAC("MlpPolicy", random_env(), aux_loss=aux_loss, n_trajectories=4, policy_kwargs=TINY, **SMALL).learn(40)
    logged = model.logger.name_to_value
    for target in resolve_aux_loss(aux_loss):
        for kind in ("loss", "baseline"):
            assert np.isfinite(logged[f"train/aux_{target}_{kind}"])


def test_key_encoder_follows_the_critic():
    model = AAC("MlpPolicy", random_env(), aux_loss="contrastive", policy_kwargs=TINY, **SMALL)
    auxiliary, mlp = model.policy.auxiliary, model.policy.mlp_extractor.value_net
    for key, source in zip(auxiliary.key_mlp.parameters(), mlp.parameters(), strict=True):
        assert th.equal(key, source)
    start = mlp[0].weight.clone()
    model.learn(20)
    moved, followed = (mlp[0].weight - start).abs().max(), (auxiliary.key_mlp[0].weight - start).abs().max()
    assert 0 < followed < moved


def test_predictions_start_at_their_baselines():
    policy = make_policy(4, aux_targets=ALL, perturb=False)
    losses = policy.auxiliary(policy, drawn(policy), 0.3)
    for name in ("return", "observation", "action", "reward"):
        th.testing.assert_close(losses[name].loss, losses[name].baseline)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "aux_loss", "n_steps"),
    [("CartPole-v1", "contrastive", 40_960), ("CartPole-v1", "value", 20_480), ("Pendulum-v1", "prediction", 81_920)],
)
def test_learns_to_predict_held_out_trajectories(env_id, aux_loss, n_steps):
    """On episodes that nothing was learned from, each loss is under its baseline."""
    env = make_vec_env(env_id, n_envs=4, seed=0)
    options = {"n_steps": 256, "batch_size": 128, "n_epochs": 10, "learning_rate": 1e-3, "gamma": 0.9}
    model = AAC("MlpPolicy", env, aux_loss=aux_loss, aux_coef=1.0, seed=0, device="cpu", **options).learn(n_steps)
    held_out = AAC("MlpPolicy", make_vec_env(env_id, n_envs=4, seed=1000), aux_loss=aux_loss, **options, device="cpu")
    held_out.policy.load_state_dict(model.policy.state_dict())
    held_out._setup_learn(1024, None)
    held_out.collect_rollouts(held_out.env, held_out._init_callback(None), held_out.rollout_buffer, 256)
    recent = RecentTrajectories(0)
    recent.add(held_out.rollout_buffer)
    held_out.policy.set_training_mode(False)
    with th.no_grad():
        losses = held_out.policy.auxiliary(held_out.policy, recent.sample(256, 64), held_out.mask_ratio)
    for name, (loss, baseline) in losses.items():
        assert loss < 0.9 * baseline, (name, float(loss), float(baseline))
