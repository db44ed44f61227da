"""The masked prediction: what is left out is hidden, each loss is what it says, and each target can be learned."""

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import CombinedExtractor
from test_run import SMALL, TINY, random_env
from trajectories import fill, make_buffer, make_policy, random_windows

from sb3_attention_ac import AAC
from sb3_attention_ac.auxiliary import masked_prediction as module
from sb3_attention_ac.auxiliary.masked_prediction import MAX_SPAN, _last_visible, masked_mean, sample_mask
from sb3_attention_ac.auxiliary.recent_trajectories import RecentTrajectories
from sb3_attention_ac.auxiliary.targets import resolve_aux_loss
from sb3_attention_ac.type_aliases import AuxiliaryBatch, AuxiliaryLoss, TrajectoryWindows

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


def hidden_states(policy, windows: TrajectoryWindows, masked: th.Tensor) -> th.Tensor:
    return policy.masked_prediction._hidden(policy.masked_encoder(), windows, masked)


def losses_of(policy, batch: AuxiliaryBatch, mask_ratio: float = 0.3) -> dict[str, AuxiliaryLoss]:
    return policy.masked_prediction(policy.masked_encoder(), policy.extract_features, batch, mask_ratio)


# --- what is hidden ---


@pytest.mark.parametrize("actor", [{}, {"memory_actor": True}, {"memory_actor": True, "share_encoder": True}])
def test_left_out_steps_are_hidden(actor):
    """Nothing that is predicted changes when s_t, a_t, r_t of the masked steps change, in any token."""
    policy = make_policy(4, aux_targets=ALL[1:], n_layers=2, **actor)
    windows = drawn(policy).windows
    masked = sample_mask(th.ones_like(windows.episode_starts), 0.3)
    before = hidden_states(policy, windows, masked)
    after_masked = F.pad(masked, (1, 0))[:, :-1]
    other = windows._replace(
        observations=th.where(masked.unsqueeze(-1), 5.0, windows.observations),
        previous_actions=th.where(
            after_masked.unsqueeze(-1), 1 - windows.previous_actions.clamp(0, 1), windows.previous_actions
        ),
        previous_rewards=th.where(after_masked, 7.0, windows.previous_rewards),
    )
    th.testing.assert_close(hidden_states(policy, other, masked), before)
    visible = windows._replace(observations=th.where(masked.unsqueeze(-1), windows.observations, 5.0))
    assert not th.allclose(hidden_states(policy, visible, masked), before)
    for name in ("previous_actions", "previous_rewards"):  # where they are not masked, they are seen
        changed = windows._replace(**{name: 1 - getattr(windows, name).clamp(0, 1)})
        seen = not th.allclose(hidden_states(policy, changed, masked), before)
        assert seen == (name == "previous_actions" or not actor.get("share_encoder"))  # an actor's encoder reads no rewards


def test_rewards_are_hidden_from_the_return():
    """The return is a sum of rewards: with it as a target, no reward may be seen."""
    policy = make_policy(4, aux_targets=("return",))
    windows = drawn(policy).windows
    masked = sample_mask(th.ones_like(windows.episode_starts), 0.3)
    other = windows._replace(previous_rewards=windows.previous_rewards + 3)
    th.testing.assert_close(hidden_states(policy, other, masked), hidden_states(policy, windows, masked))


def test_a_masked_step_is_seen_from_both_sides_of_its_own_episode():
    policy, windows = make_policy(4, aux_targets=("reward",)), random_windows(0, 8, 0.0)
    windows.episode_ids[:, 6:] = 1
    masked = th.zeros((4, 8), dtype=th.bool)
    masked[:, 3] = True
    before = hidden_states(policy, windows, masked)[:, 3]
    for step in range(8):
        observations = windows.observations.clone()
        observations[:, step] += 1
        after = hidden_states(policy, windows._replace(observations=observations), masked)[:, 3]
        assert th.equal(after, before) == (step in (3, 6, 7)), step


def test_stacked_frames_leave_masked_steps_out():
    """With an encoder that sees each step alone, the frames of a memory actor's critic still hold no masked step."""
    policy = make_policy(1, aux_targets=("reward",), memory_actor=True, local_window=3)
    windows, masked = random_windows(0, 8, 0.0), th.zeros((4, 8), dtype=th.bool)
    masked[:, 3] = True
    windows = windows._replace(episode_ids=th.zeros_like(windows.episode_ids))
    observations = windows.observations.clone()
    observations[:, 3] += 1
    before = hidden_states(policy, windows, masked)
    assert th.equal(hidden_states(policy, windows._replace(observations=observations), masked), before)


def with_previous_steps(target: str):
    """A policy, windows with the previous action and reward in their observations, and a mask of their step 2"""
    space = spaces.Dict({name: spaces.Box(-1, 1, (2,)) for name in ("seen", "previous_action", "previous_reward")})
    options = {"observation_space": space, "features_extractor_class": CombinedExtractor}
    windows = random_windows(0, 6, 0.0)._replace(observations={name: th.randn(4, 6, 2) for name in space.spaces})
    masked = th.zeros((4, 6), dtype=th.bool)
    masked[:, 2] = True
    return make_policy(4, aux_targets=(target,), **options), windows, masked


def test_what_a_wrapper_puts_into_observations_is_hidden_as_well():
    policy, windows, masked = with_previous_steps("reward")
    before = hidden_states(policy, windows, masked)
    for name in windows.observations:
        for step in range(6):
            observations = {key: value.clone() for key, value in windows.observations.items()}
            observations[name][:, step] += 1
            after = hidden_states(policy, windows._replace(observations=observations), masked)
            # Step 2 is masked; what step 3 is told of the step before is the masked action and reward
            assert th.equal(after, before) == (step == 2 or (step == 3 and name != "seen")), (name, step)


def test_rewards_in_observations_are_hidden_from_the_return():
    """Those of steps that are not masked as well; actions are not"""
    policy, windows, masked = with_previous_steps("return")
    before = hidden_states(policy, windows, masked)
    for name in ("previous_action", "previous_reward"):
        observations = {**windows.observations, name: windows.observations[name] + 1}
        after = hidden_states(policy, windows._replace(observations=observations), masked)
        assert th.equal(after, before) == (name == "previous_reward")


def test_a_token_says_that_its_step_is_masked():
    policy, windows = make_policy(4, aux_targets=("reward",)), random_windows(0, 6, 0.0)
    masked = th.zeros((4, 6), dtype=th.bool)
    masked[0, 2] = True
    before = hidden_states(policy, windows, masked)
    with th.no_grad():
        policy.masked_prediction.mask_token.add_(1.0 + th.arange(8))
    after = hidden_states(policy, windows, masked)
    assert not th.allclose(after[0], before[0])
    assert th.equal(after[1:], before[1:])


# --- which steps are masked ---


def test_mask_ratio():
    th.manual_seed(0)
    eligible = th.rand(200, 60) < 0.8
    for ratio in (0.1, 0.25, 0.5):
        masked = sample_mask(eligible, ratio)
        assert not (masked & ~eligible).any()
        assert abs(masked[eligible].float().mean() - ratio) < 0.03


def test_spans_of_one_to_four_steps(monkeypatch):
    """From one start each, drawn with the same chance"""
    th.manual_seed(0)
    start = th.zeros((4000, 9), dtype=th.bool)
    start[:, 3] = True
    monkeypatch.setattr(th, "rand", lambda *_, **__: (~start).float())  # below any probability at the start alone
    masked = sample_mask(th.ones_like(start), 0.25)
    lengths = masked.sum(1)
    assert masked[:, 3].all() and not masked[:, :3].any() and not masked[:, 7:].any()
    for length in range(1, MAX_SPAN + 1):
        assert masked[lengths == length, 3 : 3 + length].all()
        assert abs((lengths == length).float().mean() - 1 / MAX_SPAN) < 0.03


def test_masked_mean():
    values, where = th.tensor([[1.0, 2.0], [4.0, 8.0]]), th.tensor([[True, False], [False, True]])
    assert masked_mean(values, where).item() == 4.5
    assert masked_mean(values, ~where).item() == 3.0
    assert masked_mean(values, th.zeros_like(where)).item() == 0.0


def test_last_visible_is_the_newest_of_the_same_episode():
    features = th.arange(6.0).reshape(1, 6, 1) + 1
    masked = th.tensor([[False, True, True, True, True, False]])
    episode_ids = th.tensor([[0, 0, 0, 1, 1, 1]])
    assert _last_visible(features, masked, episode_ids).flatten().tolist() == [1, 1, 1, 0, 0, 6]
    assert _last_visible(features, ~masked, episode_ids).flatten().tolist() == [0, 2, 3, 4, 5, 5]
    assert _last_visible(features, masked | True, episode_ids).flatten().tolist() == [0] * 6


# --- losses ---


def normalized(target: th.Tensor) -> th.Tensor:
    """[N, W, D] by the mean and standard deviation of each column"""
    return (target - target.mean((0, 1))) / target.std((0, 1), correction=0)


@pytest.fixture
def masked_batch(monkeypatch):
    """A policy that predicts everything, a batch, and the steps that are masked in it"""
    policy = make_policy(4, aux_targets=ALL)
    policy.masked_prediction.train()
    batch = drawn(policy)
    masked = sample_mask(batch.eligible, 0.5)
    asked = []
    monkeypatch.setattr(module, "sample_mask", lambda *arguments: asked.append(arguments) or masked)
    return policy, batch, masked, asked


def test_which_steps_and_how_many_are_asked_for(masked_batch):
    policy, batch, _, asked = masked_batch
    losses_of(policy, batch, 0.35)
    assert len(asked) == 1 and asked[0][0] is batch.eligible and asked[0][1] == 0.35


@pytest.mark.parametrize("name", ["return", "reward", "action"])
def test_errors_of_what_is_normalized(masked_batch, name):
    policy, batch, masked, _ = masked_batch
    targets = {
        "return": batch.returns.unsqueeze(-1),
        "reward": batch.rewards.unsqueeze(-1),
        "action": F.one_hot(batch.actions.squeeze(-1).long(), 3).float(),
    }
    target = normalized(targets[name])[masked]
    expected = policy.masked_prediction.heads[name](hidden_states(policy, batch.windows, masked))[masked]
    loss, baseline = losses_of(policy, batch)[name]
    th.testing.assert_close(loss, (expected - target).square().mean())
    th.testing.assert_close(baseline, target.square().mean())


def test_errors_of_the_next_observation(masked_batch):
    """Only of two masked steps in a row, in one episode; the guess is the last observation that can be seen."""
    policy, batch, masked, _ = masked_batch
    windows = batch.windows
    observations = normalized(windows.observations)
    change = policy.masked_prediction.heads["observation"](hidden_states(policy, windows, masked))
    errors, baselines = [], []
    for n, t in np.argwhere(masked.numpy()[:, :-1]):
        ids = windows.episode_ids[n]
        if not masked[n, t + 1] or ids[t] != ids[t + 1]:
            continue
        seen = [k for k in range(t) if not masked[n, k] and ids[k] == ids[t]]
        guess = observations[n, seen[-1]] if seen else th.zeros(3)
        errors.append((guess + change[n, t] - observations[n, t + 1]).square().mean())
        baselines.append((guess - observations[n, t + 1]).square().mean())
    assert len(errors) > 5
    loss, baseline = losses_of(policy, batch)["observation"]
    th.testing.assert_close(loss, th.stack(errors).mean())
    th.testing.assert_close(baseline, th.stack(baselines).mean())


@pytest.mark.parametrize("actor", [{}, {"memory_actor": True, "local_window": 3}])
def test_errors_of_the_contrastive_loss(monkeypatch, actor):
    """InfoNCE over the window, without steps of the same episode up to four steps away; chance is the baseline."""
    policy = make_policy(4, aux_targets=("contrastive",), temperature=0.3, **actor)
    batch = drawn(policy)
    masked = sample_mask(batch.eligible, 0.5)
    monkeypatch.setattr(module, "sample_mask", lambda *_: masked)
    windows, auxiliary = batch.windows, policy.masked_prediction
    width = 3 if not actor else 9  # keys are made of one step: frames before it are zeros
    keys = F.normalize(auxiliary.key_mlp(F.pad(windows.observations, (0, width - 3))), dim=-1)
    queries = F.normalize(auxiliary.heads["contrastive"](hidden_states(policy, windows, masked)), dim=-1)
    errors, chances = [], []
    for n, t in np.argwhere(masked.numpy()):
        ids = windows.episode_ids[n]
        among = [k for k in range(10) if k == t or ids[k] != ids[t] or abs(k - t) > 4]
        logits = th.stack([queries[n, t] @ keys[n, k] / 0.3 for k in among])
        errors.append(logits.logsumexp(0) - logits[among.index(t)])
        chances.append(np.log(len(among)))
    loss, baseline = losses_of(policy, batch)["contrastive"]
    th.testing.assert_close(loss, th.stack(errors).mean())
    assert baseline.item() == pytest.approx(np.mean(chances), rel=1e-5)


def test_predictions_start_at_their_baselines():
    policy = make_policy(4, aux_targets=ALL, perturb=False)
    losses = losses_of(policy, drawn(policy))
    assert set(losses) == set(ALL)
    for name in ("return", "observation", "action", "reward"):
        th.testing.assert_close(losses[name].loss, losses[name].baseline)


def test_it_teaches_the_critics_encoder_and_no_key():
    policy = make_policy(4, aux_targets=ALL)
    sum(loss for loss, _ in losses_of(policy, drawn(policy)).values()).backward()
    auxiliary = policy.masked_prediction
    assert policy.critic_network.encoder.input_proj.weight.grad.abs().sum() > 0
    assert auxiliary.mask_token.grad.abs().sum() > 0
    assert not any(p.requires_grad for part in (auxiliary.key_mlp, auxiliary.key_extractor) for p in part.parameters())


# --- keys ---


def test_key_encoder_follows_the_critic():
    model = AAC("MlpPolicy", random_env(), aux_loss="contrastive", policy_kwargs=TINY, **SMALL)
    auxiliary, mlp = model.policy.masked_prediction, model.policy.mlp_extractor.value_net
    for key, source in zip(auxiliary.key_mlp.parameters(), mlp.parameters(), strict=True):
        assert th.equal(key, source)
    start = mlp[0].weight.clone()
    model.learn(20)
    moved, followed = (mlp[0].weight - start).abs().max(), (auxiliary.key_mlp[0].weight - start).abs().max()
    assert 0 < followed < moved


class Normalized(th.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = th.nn.Parameter(th.zeros(2))
        self.register_buffer("mean", th.zeros(2))


def test_keys_take_a_twentieth_of_each_step_and_buffers_as_they_are():
    auxiliary = make_policy(4, aux_targets=("contrastive",)).masked_prediction
    auxiliary.key_extractor, auxiliary.key_mlp = Normalized(), Normalized()
    extractor, mlp = Normalized(), Normalized()
    with th.no_grad():
        for module_, value in ((extractor, 1.0), (mlp, 10.0)):
            module_.weight.fill_(value)
            module_.mean.fill_(value)
    auxiliary.update_key_encoder(extractor, mlp)
    th.testing.assert_close(auxiliary.key_extractor.weight.data, th.full((2,), 0.05))
    th.testing.assert_close(auxiliary.key_mlp.weight.data, th.full((2,), 0.5))
    assert auxiliary.key_extractor.mean.tolist() == [1, 1] and auxiliary.key_mlp.mean.tolist() == [10, 10]
    auxiliary.update_key_encoder(extractor, mlp, tau=1.0)
    assert auxiliary.key_mlp.weight.tolist() == [10, 10]


# --- runs ---


@pytest.mark.parametrize("aux_loss", ["contrastive", "value", "prediction", ["action", "contrastive"]])
def test_logged_beside_their_baselines(aux_loss):
    model = AAC("MlpPolicy", random_env(), aux_loss=aux_loss, n_trajectories=4, policy_kwargs=TINY, **SMALL).learn(40)
    logged = model.logger.name_to_value
    for target in resolve_aux_loss(aux_loss):
        for kind in ("loss", "baseline"):
            assert np.isfinite(logged[f"train/aux_{target}_{kind}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "aux_loss", "n_steps"),
    # Steps of a balanced pole look alike: the contrastive loss has a task where they do not
    [("Pendulum-v1", "contrastive", 81_920), ("CartPole-v1", "value", 20_480), ("Pendulum-v1", "prediction", 163_840)],
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
        losses = losses_of(held_out.policy, recent.sample(256, 64), held_out.mask_ratio)
    for name, (loss, baseline) in losses.items():
        assert loss < 0.9 * baseline, (name, float(loss), float(baseline))


def test_a_previous_action_of_any_shape_is_hidden():
    """An environment's own entry of that name"""
    values, where = th.ones(3, 3, 2, 2), th.tensor([[True, False, False]] * 3)
    hidden = module._hide(values, where)
    assert not hidden[:, 0].any() and hidden[:, 1:].all()
    assert module._hide(th.ones(3, 3, 5), where)[:, 1:].all() and not module._hide(th.ones(3, 3), where)[:, 0].any()
