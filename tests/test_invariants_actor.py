"""Acting step by step must be the same as one pass over the windows; the first ratio must be one."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv
from test_changed_in_mid_run import Linear
from test_run import SMALL, TINY, random_env
from trajectories import ACTION_SPACES, ACTORS, fill, make_buffer, make_policy, noisy, rollouts

from sb3_attention_ac import AAC
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.evaluation import evaluate_actions, evaluate_transitions
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder, KVCache
from sb3_attention_ac.train_log import TrainLog

FEW = settings(max_examples=5, deadline=None)  # each of many combinations
LONG = {"seed": 0, "n_steps": 13, "n_envs": 2, "context_length": 3, "chunk_length": 4, "episode_end": 0.15}


def stepped_rollout(policy, buffer, rng, starts, episode_end) -> tuple[np.ndarray, list[th.Tensor]]:
    """
    Fill a rollout by acting.

    :return: The next episode starts, and what actions are made of at every step, [n_envs, 2 * H]
    """
    latents: list[th.Tensor] = []
    action_parameters = policy.action_parameters

    def recording(latent_pi, latent_sde=None, *others):
        latents.append(th.cat([latent_pi, latent_sde], dim=-1))
        return action_parameters(latent_pi, latent_sde, *others)

    policy.action_parameters = recording
    starts = fill(buffer, rng, starts, episode_end, policy.start_acting)
    del policy.action_parameters
    return starts, latents


def check_stepping(rollout, from_start=True, **kwargs) -> None:
    """Latents of every step in three rollouts, step by step and in one pass"""
    rng = np.random.default_rng(rollout["seed"])
    kwargs = {"memory_actor": True, "chunk_length": rollout["chunk_length"], **kwargs}
    policy = make_policy(rollout["context_length"], seed=rollout["seed"], **kwargs)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    starts = np.full(rollout["n_envs"], from_start)
    for _ in range(3):
        starts, latents = stepped_rollout(policy, buffer, rng, starts, rollout["episode_end"])
        for first, length in buffer.chunks():
            for start in first:
                windows, _ = buffer.windows(np.full(buffer.n_envs, start), np.arange(buffer.n_envs), length)
                encoded = policy.encode_windows(windows, length).actor
                batched = th.cat([encoded.latent, encoded.mlp_latent], dim=-1)
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


OPTIONS: dict[str, dict[str, Any]] = {
    "gSDE": {"use_sde": True, "action_space": ACTION_SPACES["Box"]},
    "ages": {"age_input": True},
    "sinusoidal ages": {"age_input": "sinusoidal"},
    "landmarks": {"n_landmarks": 2, "age_input": True},
    "more landmarks than steps": {"n_landmarks": 9, "n_layers": 2},
    "landmarks by surprise": {"n_landmarks": 2, "landmark_rule": "surprise"},
}


@FEW
@given(rollouts)
@pytest.mark.parametrize("option", OPTIONS)
def test_stepping_with_every_option(option, rollout):
    check_stepping(rollout, **OPTIONS[option])


@pytest.mark.parametrize("use_sde", [False, True])
def test_noise_held_over_steps_cannot_be_read(use_sde):
    """The last action tells the noise of the next one with gSDE: neither actor nor critic may see it."""
    policy = make_policy(4, ACTION_SPACES["Box"], memory_actor=True, use_sde=use_sde)
    buffer = make_buffer(policy, n_steps=8, n_envs=2)
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), episode_end=0.0)
    windows, _ = buffer.windows(np.array([4, 4]), np.array([0, 1]), 4)
    other = windows._replace(previous_actions=windows.previous_actions + 1)
    encoded, changed = policy.encode_windows(windows, 4), policy.encode_windows(other, 4)
    assert th.equal(encoded.actor.latent, changed.actor.latent) == use_sde
    assert th.equal(encoded.critic.latent, changed.critic.latent) == use_sde


def test_attention_does_not_change_the_noise():
    """gSDE's noise grows with its latents, and what attention adds to the actor's has no bounds."""
    policy = make_policy(4, ACTION_SPACES["Box"], memory_actor=True, use_sde=True)
    obs = th.rand(5, 3)
    before = policy.get_distribution(obs).distribution
    with th.no_grad():
        policy.actor_network.output_proj.weight.mul_(10)
    after = policy.get_distribution(obs).distribution
    assert th.equal(after.stddev, before.stddev) and not th.allclose(after.mean, before.mean)


def test_a_stale_cache_is_found(monkeypatch):
    check_stepping(LONG, n_layers=2)
    monkeypatch.setattr(IncrementalEncoder, "prefill", lambda self, cache, rows: cache.position.fill_(self.n_context))
    with pytest.raises(AssertionError):
        check_stepping(LONG, n_layers=2)


# --- the first ratio --------------------------------------------------------------------------------------------------


@th.no_grad()
def largest_log_ratio(policy, buffer) -> float:
    """Of all minibatches, in training mode, under the present parameters"""
    policy.set_training_mode(True)
    largest = 0.0
    if policy.memory_actor:
        for batch in buffer.get_windows(4):
            log_prob, *_ = evaluate_actions(policy, policy.encode_windows(batch.windows, batch.actions.shape[1]), batch)
            largest = max(largest, float((log_prob - batch.old_log_prob).abs().max()))
    else:
        for batch in buffer.get_transitions(4):
            arguments = batch.observations, batch.actions, batch.action_masks, batch.logit_offsets
            log_prob = evaluate_transitions(policy, *arguments)[1]
            largest = max(largest, float((log_prob - batch.old_log_prob).abs().max()))
    policy.set_training_mode(False)
    return largest


def check_first_ratio(name, kwargs, rollout, masked=False) -> None:
    """Whatever minibatch comes first: new and old log probabilities agree."""
    rng = np.random.default_rng(rollout["seed"])
    kwargs = {"chunk_length": rollout["chunk_length"], **kwargs}
    policy = make_policy(rollout["context_length"], ACTION_SPACES[name], seed=rollout["seed"], **kwargs)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    if policy.attention_q is not None:
        policy.attention_q.evidence.fill_(3.0)
    start_acting = noisy(policy, every=3) if policy.use_sde else policy.start_acting
    starts = np.ones(rollout["n_envs"], dtype=bool)
    for _ in range(2):
        starts = fill(buffer, rng, starts, rollout["episode_end"], start_acting, masked)
        assert masked or (buffer.log_probs != 0).all()
        assert largest_log_ratio(policy, buffer) < 1e-4


@FEW
@given(rollouts)
@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("actor", ACTORS)
def test_first_ratio_is_one(actor, name, rollout):
    check_first_ratio(name, ACTORS[actor], rollout)


@FEW
@given(rollouts)
@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("option", ["masks", "Q_att and masks", "gSDE", "squashed gSDE", "landmarks"])
def test_first_ratio_is_one_with_every_option(option, actor, rollout):
    kwargs: dict[str, Any] = {**ACTORS[actor], "attention_q": "Q_att" in option, "n_landmarks": 2 * (option == "landmarks")}
    kwargs |= {"use_sde": "gSDE" in option, "squash_output": "squashed" in option}
    check_first_ratio("Box" if "gSDE" in option else "MultiDiscrete", kwargs, rollout, "masks" in option)


@pytest.mark.parametrize("memory_actor", [False, True])
def test_the_first_ratio_of_a_run_is_one_where_a_masked_prediction_teaches_the_actors_features(memory_actor, monkeypatch):
    firsts: list[float] = []
    add_log_ratio = TrainLog.add_log_ratio

    def noting(self, log_ratio):
        if "log_ratio" not in self._values:
            firsts.append(float(log_ratio.detach().abs().max()))
        add_log_ratio(self, log_ratio)

    monkeypatch.setattr(TrainLog, "add_log_ratio", noting)
    policy_kwargs = {**TINY, "memory_actor": memory_actor, "features_extractor_class": Linear}
    settings_: dict[str, Any] = {**SMALL, "learning_rate": 0.05, "aux_loss": "value", "aux_coef": 1.0}
    AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, **settings_).learn(80)
    assert len(firsts) == 4 and max(firsts) < 1e-4


@pytest.mark.parametrize(
    ("kwargs", "networks"),
    [({}, ["critic_network"]), ({"memory_actor": True}, ["actor_network", "critic_network"])],
    ids=["MLP actor", "memory actor"],
)
def test_dropout_leaves_the_first_ratio_at_one(kwargs, networks):
    """Dropout is the critic's alone, which does change in training mode."""
    check_first_ratio("Discrete", {**kwargs, "dropout": 0.5}, LONG)
    policy = make_policy(3, **kwargs, dropout=0.5)
    dropouts = [name for name, module in policy.named_modules() if isinstance(module, th.nn.Dropout)]
    assert dropouts and all(name.startswith("critic_network.") for name in dropouts)
    buffer = make_buffer(policy, 13, 2)
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), 0.1)
    policy.set_training_mode(True)
    windows = next(buffer.get_windows()).windows
    first, second = (policy.encode_windows(windows, 4) for _ in range(2))
    assert not th.equal(first.critic.latent, second.critic.latent)
    assert first.actor is None or th.equal(first.actor.latent, second.actor.latent)


def test_minibatches_without_their_context_are_found(monkeypatch):
    get_windows = TrajectoryRolloutBuffer.get_windows

    def without_context(self, batch_size):
        for samples in get_windows(self, batch_size):
            samples.windows.episode_ids[:, : self.n_context] = -2
            yield samples

    monkeypatch.setattr(TrajectoryRolloutBuffer, "get_windows", without_context)
    with pytest.raises(AssertionError):
        check_first_ratio("Discrete", {"memory_actor": True}, LONG)


@pytest.mark.parametrize("actor", ACTORS)
def test_old_log_probabilities_of_other_steps_are_found(monkeypatch, actor):
    target = TrajectoryRolloutBuffer.target
    monkeypatch.setattr(
        TrajectoryRolloutBuffer,
        "target",
        lambda self, name: target(self, name).flip(0) if name == "log_probs" else target(self, name),
    )
    with pytest.raises(AssertionError):
        check_first_ratio("Discrete", ACTORS[actor], LONG)


@FEW
@given(rollouts)
@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("kwargs", [{}, {"share_encoder": True}, {"share_features_extractor": False}])
def test_the_actor_alone_says_what_it_says_beside_the_critic(name, kwargs, rollout):
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], ACTION_SPACES[name], memory_actor=True, **kwargs)
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    fill(buffer, rng, np.ones(rollout["n_envs"], dtype=bool), rollout["episode_end"])
    for batch in buffer.get_windows(4):
        n = batch.actions.shape[1]
        both, alone = (policy.encode_windows(batch.windows, n, skip_critic) for skip_critic in (False, True))
        assert both.critic is not None and alone.critic is None
        log_prob, entropy, _ = evaluate_actions(policy, alone, batch)
        assert log_prob.shape == batch.advantages.shape
        th.testing.assert_close((log_prob, entropy), evaluate_actions(policy, both, batch)[:2])
        th.testing.assert_close(alone.features, both.features)


class Doubled(th.nn.Linear):
    """A first layer with a forward of its own"""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("net_arch", [[6, 6], []])
@pytest.mark.parametrize("own", ["plain", "subclass", "hook"])
def test_at_first_a_memory_actor_is_its_mlp_whatever_its_first_layer(own, net_arch):
    policy = make_policy(4, memory_actor=True, net_arch=net_arch, perturb=False)
    layers = policy.mlp_extractor.policy_net
    assert not layers[0].weight[:, 3:].any()  # at first the frames before are not read
    if own == "subclass":
        layers[0] = Doubled(layers[0].in_features, layers[0].out_features)
    elif own == "hook":
        layers[0].register_forward_hook(lambda module, inputs, output: output + 1)
    obs = th.randn(5, *policy.observation_space.shape)
    mlp = policy.action_net(policy.mlp_extractor.forward_actor(th.nn.functional.pad(obs, (0, 9))))
    th.testing.assert_close(policy.get_distribution(obs).distribution.logits, mlp - mlp.logsumexp(-1, keepdim=True))


# --- what predict() sees is what training windows see -----------------------------------------------------------------


class LongEpisodes(gym.Env):
    """Random observations; episodes of 70 steps"""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, self.t == 70, False, {}


def farthest(outputs: Callable[[int], th.Tensor], step: int, backs: list[int]) -> int:
    """Of some steps back, the farthest whose observation changes what is said at a step"""
    said = outputs(-1)
    return max((back for back in backs if not th.equal(outputs(step - back), said)), default=-1)


def seen_by_predict(model, obs: np.ndarray, step: int, backs: list[int]) -> int:
    """Through the state, in one episode"""
    said: list[th.Tensor] = []
    model.policy.action_net.register_forward_hook(lambda module, inputs, output: said.append(output[0].clone()))

    def outputs(changed: int) -> th.Tensor:
        other, state = obs.copy(), None
        if changed >= 0:
            other[changed] += 0.5
        for t in range(step + 1):
            _, state = model.predict(other[t], state, np.array([t == 0]), deterministic=True)
            KVCache._make(state).previous_action[:] = 0  # else what was seen long ago is handed on by actions
        return said[-1]

    return farthest(outputs, step, backs)


@th.no_grad()
def seen_in_training(model, obs: np.ndarray, step: int, backs: list[int]) -> int:
    """In the window that the step is learned from, if rollouts follow one another in one episode"""
    policy, buffer = model.policy, model.rollout_buffer
    rollout, in_rollout = divmod(step, buffer.buffer_size)
    start, length = next(
        (start, length) for starts, length in buffer.chunks() for start in starts if start <= in_rollout < start + length
    )

    def outputs(changed: int) -> th.Tensor:
        other = obs.copy()
        if changed >= 0:
            other[changed] += 0.5
        buffer._storage = None
        for t in range((rollout + 1) * buffer.buffer_size):
            if t % buffer.buffer_size == 0:
                buffer.reset()
            buffer.add(other[t], np.zeros((1, 1)), np.zeros(1), np.array([t == 0]))
        windows, _ = buffer.windows(np.array([start]), np.array([0]), length)
        return policy.action_net(policy.encode_windows(windows, length).actor.latent[0, in_rollout - start])

    return farthest(outputs, step, backs)


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize(("n_steps", "context_length", "chunk"), [(4, 6, 4), (7, 5, 7), (3, 10, 3), (35, 8, 18), (40, 33, 20)])
def test_predict_sees_as_far_back_as_training(n_steps, context_length, chunk, n_layers):
    """Rollouts shorter than the context, odd ones, and ones that are cut into two chunks"""
    network = {**TINY, "context_length": context_length, "n_layers": n_layers, "memory_actor": True}
    settings_ = {**SMALL, "n_steps": n_steps, "batch_size": n_steps, "policy_kwargs": network}
    model = AAC("MlpPolicy", DummyVecEnv([LongEpisodes]), **settings_)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    assert model.policy.chunk_length == model.rollout_buffer.chunk_length == chunk
    obs = np.random.default_rng(0).uniform(-1, 1, (120, 1, 3)).astype(np.float32)
    first_of_a_rollout = -(-(context_length + chunk) // n_steps) * n_steps  # from here on there is more than a window holds
    first_of_a_chunk = -(-(context_length + chunk) // chunk) * chunk
    for later in (0, chunk - 1):
        expected = context_length + later
        backs = [expected, *(back for back in (expected + 1, expected + 2, expected + chunk) if back <= first_of_a_chunk)]
        assert seen_in_training(model, obs, first_of_a_rollout + later, backs) == expected
        assert seen_by_predict(model, obs, first_of_a_chunk + later, backs) == expected


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize("n_steps", [3, 7, 16, 33])
@pytest.mark.parametrize("context_length", [2, 8, 40])
def test_predict_gives_the_log_probabilities_that_are_trained(n_steps, context_length):
    """One episode of 70 steps and part of another: ``predict`` takes the rollouts' actions, distributions are compared."""
    network = {**TINY, "context_length": context_length, "memory_actor": True}
    settings_ = {**SMALL, "n_steps": n_steps, "batch_size": n_steps, "learning_rate": 1e-9, "policy_kwargs": network}
    model = AAC("MlpPolicy", DummyVecEnv([LongEpisodes]), **settings_)
    with th.no_grad():
        model.policy.actor_network.output_proj.weight.normal_()
    seen: dict[str, list[Any]] = {"obs": [], "starts": [], "actions": [], "logits": [], "trained": []}

    class Recording(BaseCallback):
        def _on_step(self) -> bool:
            seen["obs"].append(self.model._last_obs.copy())
            seen["starts"].append(self.model._last_episode_starts.copy())
            seen["actions"].append(self.locals["actions"])
            return True

        @th.no_grad()
        def _on_rollout_end(self) -> None:
            policy, buffer = self.model.policy, self.model.rollout_buffer
            for starts, length in buffer.chunks():
                for start in starts:
                    batch = buffer.window_samples(np.array([start]), np.array([0]), length)
                    encoded = policy.encode_windows(batch.windows, length)
                    seen["trained"] += list(policy.action_net(encoded.actor.latent[0]))

    model.learn(6 * n_steps, callback=Recording())
    policy, state = model.policy, None
    model.policy.action_net.register_forward_hook(lambda module, inputs, output: seen["logits"].append(output[0].clone()))
    for t, obs in enumerate(seen["obs"]):
        if t % n_steps == 0 and state is not None and n_steps % policy.chunk_length != 0:
            break  # chunks of the next rollout begin elsewhere
        _, state = model.predict(obs, state, seen["starts"][t])
        KVCache._make(state).previous_action[:] = seen["actions"][t]
    compared = th.stack(seen["logits"]), th.stack(seen["trained"][: len(seen["logits"])])
    assert len(seen["logits"]) >= n_steps
    th.testing.assert_close(*compared, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:batch_size=")  # not a multiple of every chunk length
@FEW
@given(st.integers(1, 40), st.integers(1, 20), st.booleans())
def test_the_algorithm_gives_the_policy_the_chunks_of_its_buffer(n_steps, context_length, memory_actor):
    network = {**TINY, "context_length": context_length, "memory_actor": memory_actor}
    settings_ = {**SMALL, "n_steps": n_steps, "batch_size": 2 * n_steps, "policy_kwargs": network}
    model = AAC("MlpPolicy", random_env(), **settings_)
    assert model.policy.chunk_length == model.rollout_buffer.chunk_length <= n_steps


# --- old log probabilities are those of the policy that acted ------------------------------------------------------------


def by_data(policy, other) -> None:
    for parameter, new in zip(policy.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(new.data)


WAYS: dict[str, Callable[[Any, Any], None]] = {
    "data": by_data,
    "load_state_dict": lambda policy, other: policy.load_state_dict(other.state_dict()),
    "load_from_vector": lambda policy, other: policy.load_from_vector(other.parameters_to_vector()),
    "polyak_update": lambda policy, other: polyak_update(other.parameters(), policy.parameters(), 1.0),
}


class SetParameters(BaseCallback):
    """After one step of the second rollout, and a copy of the rollout before it is learned from"""

    def __init__(self, way: str, other, at_step: int = 3):
        super().__init__()
        self.way, self.other, self.at_step = way, other, at_step

    def _on_step(self) -> bool:
        if self.num_timesteps > self.model.n_steps and self.locals["n_steps"] == self.at_step:
            WAYS[self.way](self.model.policy, self.other)
        return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("actor", ACTORS)
def test_parameters_written_in_mid_rollout_leave_old_log_probabilities_as_they_were(actor, way):
    """
    Up to the write they are the old network's, from the next episode on the new one's; in between an actor with a memory acts
    with what the old one remembered. The next rollout is the new one's alone.
    """
    network = {**TINY, **ACTORS[actor], "context_length": 4}
    settings_ = {**SMALL, "n_steps": 20, "batch_size": 20, "policy_kwargs": network, "learning_rate": 1e-9}
    model = AAC("MlpPolicy", random_env(n_envs=1), **settings_).learn(1)  # episodes of 7 steps: the next one starts at 21
    other = AAC("MlpPolicy", random_env(n_envs=1), **{**settings_, "seed": 1}).policy
    for policy in (model.policy, other):
        with th.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.3 * th.randn_like(parameter))
    old = AAC("MlpPolicy", random_env(n_envs=1), **settings_).policy
    by_data(old, model.policy)
    rollouts_: list[tuple[np.ndarray, np.ndarray]] = []
    train = model.train

    def keep() -> None:
        buffer = model.rollout_buffer
        batch = next(buffer.get_windows())
        under = []
        for policy in (old, other):
            with th.no_grad():
                if policy.memory_actor:
                    encoded = policy.encode_windows(batch.windows, batch.actions.shape[1])
                    under.append(evaluate_actions(policy, encoded, batch)[0][0])
                else:
                    samples = buffer.transition_samples(th.arange(20))
                    under.append(evaluate_transitions(policy, samples.observations, samples.actions)[1])
        rollouts_.append((buffer.log_probs[:, 0], th.stack(under).numpy()))
        train()

    model.train = keep
    model.learn(60, callback=SetParameters(way, other))
    (first, under_first), (second, under_second), (third, under_third) = rollouts_
    close = {"rtol": 0, "atol": 1e-4}
    np.testing.assert_allclose(first, under_first[0], **close)
    starts = np.flatnonzero(model.rollout_buffer.episode_starts)  # of the third rollout
    assert len(starts) > 0
    np.testing.assert_allclose(second[:4], under_second[0][:4], **close)
    fresh = slice(8, None) if model.policy.memory_actor else slice(4, None)  # episodes start at 1, 8, 15
    np.testing.assert_allclose(second[fresh], under_second[1][fresh], **close)
    assert np.abs(under_second[0] - under_second[1]).max() > 0.1  # they do differ
    np.testing.assert_allclose(third, under_third[1], **close)


@pytest.mark.parametrize(("context_length", "memory_actor", "chunk"), [(4, True, 32), (40, True, 40), (4, False, 8)])
def test_chunks_of_a_memory_actor_are_not_short(context_length, memory_actor, chunk):
    assert make_policy(context_length, memory_actor=memory_actor).chunk_length == chunk
    rollout = {"seed": 0, "context_length": context_length, "n_envs": 2, "chunk_length": None}
    check_stepping({**rollout, "n_steps": 3 * chunk, "episode_end": 0.05})
