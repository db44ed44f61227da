"""Acting step by step must be the same as one pass over the windows; the first ratio must be one."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from sb3_attention_ac.estimates import estimate_rollout
from sb3_attention_ac.memory import TrajectoryStepper
from sb3_attention_ac.trajectory_policy import SHORTEST_CHUNK
from sb3_attention_ac.trunk import TrunkOutput
from trajectories import ACTION_SPACES, fill, make_buffer, make_policy, next_observations, rollouts

from sb3_attention_ac import AAC, trajectory_policy
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer

AS_SHIPPED = SHORTEST_CHUNK  # conftest.py changes it

FEW = settings(max_examples=5, deadline=None)  # each of many combinations


def stepped_rollout(policy, buffer, rng, starts, episode_end) -> tuple[np.ndarray, list[th.Tensor], list[TrunkOutput]]:
    """
    Fill a rollout by acting; returns the next episode starts, what actions are made of at every step, [n_envs, 2 * H], and
    what the actor says it has made of it.
    """
    latents, acted = [], []
    sample_actions = policy.sample_actions

    def recording(latent_pi, deterministic, offsets, latent_sde):
        latents.append(th.cat([latent_pi, latent_sde], dim=-1))
        return sample_actions(latent_pi, deterministic, offsets, latent_sde)

    policy.sample_actions = recording
    actor = []

    def step(obs, episode_starts):
        actor[:] = actor or [policy.start_acting(buffer)]  # once the buffer is reset, as in collect_rollouts()
        decision = actor[0](obs, episode_starts)
        acted.append(decision.latents)
        return decision.actions.numpy()

    starts = fill(buffer, rng, starts, episode_end, step)
    policy.sample_actions = sample_actions
    return starts, latents, acted


def check_stepping(rollout, from_start=True, **kwargs) -> None:
    """Latents of every step in three rollouts, step by step and in one pass"""
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], seed=rollout["seed"], memory_actor=True, **kwargs)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    starts = np.full(rollout["n_envs"], from_start)
    for _ in range(3):
        starts, latents, _ = stepped_rollout(policy, buffer, rng, starts, rollout["episode_end"])
        for first, length in buffer.chunks():
            for start in first:
                windows, _ = buffer.windows(np.full(buffer.n_envs, start), np.arange(buffer.n_envs), length)
                evaluated = policy.window_latents(windows, length)
                batched = th.cat([evaluated.actor.latents, evaluated.actor.mlp_latents], dim=-1)
                alone = th.stack(latents[start : start + length], dim=1)
                th.testing.assert_close(alone, batched, rtol=0, atol=1e-5)


@FEW
@given(rollouts)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_stepping_equals_the_batched_pass(n_layers, rollout):
    check_stepping(rollout, n_layers=n_layers)


@FEW
@given(rollouts)
def test_an_empty_buffer_holds_no_past(rollout):
    """A loaded model that goes on in the middle of an episode (``force_reset=False``)"""
    check_stepping(rollout, from_start=False)


@FEW
@given(rollouts)
def test_stepping_with_gsde(rollout):
    check_stepping(rollout, use_sde=True, action_space=ACTION_SPACES["Box"])


@pytest.mark.parametrize("use_sde", [False, True])
def test_noise_held_over_steps_cannot_be_read(use_sde):
    """The last action tells the noise of the next one with gSDE: neither actor nor critic may see it."""
    policy = make_policy(4, ACTION_SPACES["Box"], memory_actor=True, use_sde=use_sde)
    buffer = make_buffer(policy, n_steps=8, n_envs=2)
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), episode_end=0.0)
    windows, _ = buffer.windows(np.array([4, 4]), np.array([0, 1]), 4)
    other = windows._replace(previous_actions=windows.previous_actions + 1)
    for trunk, changed in zip(policy.window_latents(windows, 4)[:2], policy.window_latents(other, 4)[:2], strict=True):
        assert th.equal(trunk.latents, changed.latents) == use_sde


def test_attention_does_not_change_the_noise():
    """gSDE's noise grows with its latents, and what attention adds to the actor's has no bounds."""
    policy = make_policy(4, ACTION_SPACES["Box"], memory_actor=True, use_sde=True)
    obs = th.rand(5, 3)
    before = policy.get_distribution(obs).distribution
    with th.no_grad():
        policy.actor_trunk.write.weight.mul_(10)
    after = policy.get_distribution(obs).distribution
    assert th.equal(after.stddev, before.stddev) and not th.allclose(after.mean, before.mean)


def test_a_stale_memory_is_found(monkeypatch):
    rollout = {"seed": 0, "n_steps": 13, "n_envs": 2, "context_length": 3, "episode_end": 0.15}
    check_stepping(rollout, n_layers=2)
    monkeypatch.setattr(TrajectoryStepper, "recall", lambda self, memory, rows: memory.position.fill_(self.n_context))
    with pytest.raises(AssertionError):
        check_stepping(rollout, n_layers=2)


def check_first_ratio(name, kwargs, rollout) -> None:
    """Whatever minibatch comes first, in training mode: new and old log probabilities agree."""
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], ACTION_SPACES[name], seed=rollout["seed"], **kwargs)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    starts = fill(buffer, rng, np.ones(rollout["n_envs"], dtype=bool), rollout["episode_end"])
    fill(buffer, rng, starts, rollout["episode_end"])
    estimates = estimate_rollout(policy, buffer, next_observations(buffer, rng))
    buffer.set_estimates(estimates.values, estimates.log_probs)
    policy.set_training_mode(True)
    if kwargs:
        for samples in buffer.get_windows(4):
            log_prob = policy.evaluate_windows(samples.windows, samples.actions).log_prob
            assert (th.exp(log_prob - samples.old_log_prob) - 1).abs().max() < 1e-4
    else:
        for samples in buffer.get(4):
            log_prob = policy.evaluate_actor(samples.observations, samples.actions)[0]
            assert (th.exp(log_prob - samples.old_log_prob) - 1).abs().max() < 1e-4


@FEW
@given(rollouts)
@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("kwargs", [{}, {"memory_actor": True}, {"memory_actor": True, "share_encoder": True}])
def test_first_ratio_is_one(name, kwargs, rollout):
    check_first_ratio(name, kwargs, rollout)


LONG = {"seed": 0, "n_steps": 13, "n_envs": 2, "context_length": 3, "episode_end": 0.15}


def test_minibatches_without_their_context_are_found(monkeypatch):
    get_windows = TrajectoryRolloutBuffer.get_windows

    def without_context(self, batch_size):
        for samples in get_windows(self, batch_size):
            samples.windows.episode_ids[:, : self.n_context] = -2
            yield samples

    monkeypatch.setattr(TrajectoryRolloutBuffer, "get_windows", without_context)
    with pytest.raises(AssertionError):
        check_first_ratio("Discrete", {"memory_actor": True}, LONG)


@pytest.mark.parametrize("kwargs", [{}, {"memory_actor": True}])
def test_old_log_probabilities_of_other_steps_are_found(monkeypatch, kwargs):
    set_estimates = TrajectoryRolloutBuffer.set_estimates
    monkeypatch.setattr(
        TrajectoryRolloutBuffer,
        "set_estimates",
        lambda self, values, log_probs: set_estimates(self, values, log_probs[::-1]),
    )
    with pytest.raises(AssertionError):
        check_first_ratio("Discrete", kwargs, LONG)


@FEW
@given(rollouts)
@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("kwargs", [{}, {"share_encoder": True}, {"share_features_extractor": False}])
def test_the_actor_alone_says_what_it_says_beside_the_critic(name, kwargs, rollout):
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], ACTION_SPACES[name], memory_actor=True, **kwargs)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    fill(buffer, rng, np.ones(rollout["n_envs"], dtype=bool), rollout["episode_end"])
    for samples in buffer.get_windows(4):
        both = policy.evaluate_windows(samples.windows, samples.actions)
        log_prob, entropy, _ = policy.evaluate_memory_actor(samples.windows, samples.actions)
        assert log_prob.shape == samples.advantages.shape
        th.testing.assert_close((log_prob, entropy), (both.log_prob, both.entropy))


@FEW
@given(rollouts)
@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("share_encoder", [False, True])
def test_what_acting_made_of_the_steps_gives_the_same_estimates(name, share_encoder, rollout):
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], ACTION_SPACES[name], memory_actor=True, share_encoder=share_encoder)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    starts = np.ones(rollout["n_envs"], dtype=bool)
    for _ in range(2):
        starts, _, acted = stepped_rollout(policy, buffer, rng, starts, rollout["episode_end"])
    last_obs = next_observations(buffer, rng)
    known, anew = estimate_rollout(policy, buffer, last_obs, acted), estimate_rollout(policy, buffer, last_obs)
    for ours, theirs in zip(known, anew, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    swapped = estimate_rollout(policy, buffer, last_obs, acted[::-1])
    if rollout["n_steps"] > 1:
        assert np.abs(swapped.log_probs - anew.log_probs).max() > 1e-5


class Doubled(th.nn.Linear):
    """A first layer with a forward of its own"""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("net_arch", [[6, 6], []])
@pytest.mark.parametrize("own", ["plain", "subclass", "hook"])
def test_at_first_a_memory_actor_is_its_mlp_whatever_its_first_layer(own, net_arch):
    policy = make_policy(4, memory_actor=True, net_arch=net_arch, perturb=False)
    layers = policy.mlp_extractor.policy_net
    if net_arch and own == "subclass":
        layers[0] = Doubled(layers[0].in_features, layers[0].out_features)
    elif net_arch and own == "hook":
        layers[0].register_forward_hook(lambda module, inputs, output: output + 1)
    obs = th.randn(5, *policy.observation_space.shape)
    mlp = policy.action_net(policy.mlp_extractor.forward_actor(obs))
    th.testing.assert_close(policy.get_distribution(obs).distribution.logits, mlp - mlp.logsumexp(-1, keepdim=True))


@pytest.mark.parametrize("at_step", [None, 3])
def test_parameters_that_a_callback_changes_leave_the_first_ratio_at_one(at_step):
    def change(locals_: dict, globals_: dict) -> bool:
        if locals_["n_steps"] == at_step:
            with th.no_grad():
                for parameter in locals_["self"].policy.parameters():
                    parameter.add_(0.3 * th.randn_like(parameter))
        return True

    model = AAC("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"memory_actor": True}, seed=0)
    train, largest = model.train, []

    def check() -> None:
        for samples in model.rollout_buffer.get_windows(8):
            log_prob = model.policy.evaluate_windows(samples.windows, samples.actions).log_prob
            largest.append((log_prob - samples.old_log_prob).abs().max().item())
        train()

    model.train = check
    model.learn(16, callback=change)
    assert len(largest) == 2 and max(largest) < 1e-4


@pytest.mark.parametrize(("context_length", "memory_actor", "chunk"), [(4, True, 32), (40, True, 40), (4, False, 8)])
def test_chunks_of_a_memory_actor_are_not_short(monkeypatch, context_length, memory_actor, chunk):
    monkeypatch.setattr(trajectory_policy, "SHORTEST_CHUNK", AS_SHIPPED)
    assert make_policy(context_length, memory_actor=memory_actor).chunk_length == chunk
    check_stepping({"seed": 0, "context_length": context_length, "n_steps": 3 * chunk, "n_envs": 2, "episode_end": 0.05})
