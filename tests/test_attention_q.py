"""Q_att: the tilt of the action distribution, its bound, its replay in training, and the gate that keeps it shut."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from test_run import ACTION_SPACES as RUN_SPACES
from test_run import SMALL, TINY, random_env
from torch.distributions import kl_divergence
from trajectories import ACTION_SPACES, ACTORS, fill, make_buffer, make_policy, random_masks, recorded

from sb3_attention_ac import AAC
from sb3_attention_ac.attention_q import BLOCK, DECAY, KL_BOUND, MAX_EVIDENCE, MIN_BLOCKS, OPEN_ABOVE, AttentionQ
from sb3_attention_ac.evaluation import evaluate_action_advantages, evaluate_actions, evaluate_transitions
from sb3_attention_ac.networks.distributions import Categoricals, DiagonalGaussian, as_sb3_distribution
from sb3_attention_ac.rollout_values import evaluate_rollout
from sb3_attention_ac.type_aliases import ActionParameters

MASKABLE = [(name, masked) for name in ACTION_SPACES for masked in ([False] if name == "Box" else [False, True])]


def opened(policy):
    policy.attention_q.evidence.fill_(OPEN_ABOVE + 1)
    return policy


def tilted_rollout(policy, n_steps=13, n_envs=2, n_rollouts=2, masked=False):
    """Rollouts acted out step by step, as in ``collect_rollouts``; returns the last one's buffer and what acting gave"""
    rng, buffer, outputs = np.random.default_rng(0), make_buffer(policy, n_steps, n_envs), []
    starts = np.ones(n_envs, dtype=bool)
    for _ in range(n_rollouts):
        starts = fill(buffer, rng, starts, 0.15, recorded(policy.start_acting, outputs), masked)
    return buffer, outputs


@pytest.mark.parametrize(("name", "masked"), MASKABLE)
@pytest.mark.parametrize("actor", ACTORS)
@th.no_grad()
def test_first_ratio_is_one(name, masked, actor):
    policy = opened(make_policy(3, ACTION_SPACES[name], attention_q=True, chunk_length=4, **ACTORS[actor]))
    buffer, outputs = tilted_rollout(policy, n_steps=9, masked=masked)
    assert min(float(output.logit_offsets.abs().max()) for output in outputs) > 1e-3
    policy.set_training_mode(True)
    if actor == "MLP actor":
        for samples in buffer.get_transitions(4):
            given = samples.observations, samples.actions, samples.action_masks
            log_prob = evaluate_transitions(policy, *given, samples.logit_offsets)[1]
            assert (th.exp(log_prob - samples.old_log_prob) - 1).abs().max() < 1e-4
        everything = next(buffer.get_transitions())
        given = everything.observations, everything.actions, everything.action_masks
        assert not th.allclose(evaluate_transitions(policy, *given)[1], everything.old_log_prob, atol=1e-3)
    else:
        for samples in buffer.get_windows(4):
            encoded = policy.encode_windows(samples.windows, samples.actions.shape[1])
            log_prob = evaluate_actions(policy, encoded, samples)[0]
            assert (th.exp(log_prob - samples.old_log_prob) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "masked"), MASKABLE)
@th.no_grad()
def test_predictions_while_acting_are_those_of_the_batched_pass(name, masked):
    """The offsets that were added step by step are those that one pass over the windows gives."""
    policy = opened(make_policy(3, ACTION_SPACES[name], attention_q=True))
    buffer, outputs = tilted_rollout(policy, masked=masked)
    for first, length in buffer.chunks():
        for start in first:
            batch = buffer.window_samples(np.full(buffer.n_envs, start), np.arange(buffer.n_envs), length)
            latent = policy.encode_windows(batch.windows, length).critic.latent
            for step in range(length):
                latent_pi = policy.mlp_actor_latent(batch.windows.observations[:, step - length])
                masks = None if batch.action_masks is None else batch.action_masks[:, step]
                given = policy.action_parameters(latent_pi, None, masks)
                batched = policy.attention_q.tilt(latent[:, step], given)
                th.testing.assert_close(batched, outputs[start + step].logit_offsets, rtol=0, atol=1e-4)


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize(("name", "masked"), MASKABLE)
@th.no_grad()
def test_advantages_of_a_rollout_are_those_of_its_minibatches(name, masked, actor):
    policy = opened(make_policy(3, ACTION_SPACES[name], attention_q=True, chunk_length=4, **ACTORS[actor]))
    buffer, _ = tilted_rollout(policy, n_steps=9, n_rollouts=1, masked=masked)
    last_obs = buffer.observations[-1]  # of whichever step: it has no part in this
    whole = evaluate_rollout(policy, buffer, last_obs).action_advantages
    assert whole.shape == (9, 2) and (np.abs(whole) > 1e-4).mean() > 0.3  # where a mask leaves one action, it is zero
    for starts, length in buffer.chunks():
        for start in starts:
            batch = buffer.window_samples(np.array([start, start]), np.arange(2), length)
            part = evaluate_action_advantages(policy, policy.encode_windows(batch.windows, length), batch)
            np.testing.assert_allclose(whole[start : start + length].T, part, rtol=1e-4, atol=1e-5)
            # One step alone: from the distribution that acted, with its masks and offsets
            step = length - 1
            encoded = policy.encode_windows(batch.windows, 1)
            obs = batch.windows.observations[:, -1]
            latent_pi = policy.mlp_actor_latent(obs) if encoded.actor is None else encoded.actor.latent[:, 0]
            masks = None if batch.action_masks is None else batch.action_masks[:, step]
            given = policy.action_parameters(latent_pi, None, masks, batch.logit_offsets[:, step])
            latent = encoded.stepped.latent[:, 0]
            alone = policy.attention_q.advantages(latent, given, batch.actions[:, step])
            th.testing.assert_close(part[:, step], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "masked"), MASKABLE)
@pytest.mark.parametrize("scale", [0.1, 10.0])
@th.no_grad()
def test_advantage_is_centred_and_divergence_bounded(name, masked, scale):
    space, n = ACTION_SPACES[name], 5_000
    policy = make_policy(3, space, attention_q=True)
    attention_q = policy.attention_q
    attention_q.head[-1].weight.mul_(scale)
    masks = random_masks(space, np.random.default_rng(0), 1) if masked else None
    latent, latent_pi = th.randn(1, 6).expand(n, 6), th.randn(1, 6).expand(n, 6)
    given = policy.action_parameters(latent_pi, None, None if masks is None else masks.expand(n, -1))
    actions = policy.distribution.sample(given)[0].reshape(n, -1)
    advantages = attention_q.advantages(latent, given, actions)
    assert advantages.mean().abs() <= 5 * advantages.std() / n**0.5 + 1e-6
    offsets = attention_q.tilt(latent, given, in_rollout=True)
    one = given._replace(parameters=given.parameters[:1], masks=masks)
    divergence = attention_q.divergence(one, offsets[:1])
    assert 0 < divergence <= 1.5 * KL_BOUND
    after = given._replace(parameters=given.parameters + offsets)
    exact = []
    for parameters in (one._replace(parameters=after.parameters[:1]), one):
        made = as_sb3_distribution(parameters, make_policy(3, space).action_dist, space)
        distributions = made.distributions if hasattr(made, "distributions") else made.distribution
        exact.append(distributions if isinstance(distributions, list) else [distributions])
    if not masked:  # of contrib's masked distributions the masked actions' terms are zero by infinity
        th.testing.assert_close(divergence.sum(), sum(kl_divergence(new, old).sum() for new, old in zip(*exact, strict=True)))
    # To second order it is beta^2 / 2 * Var[A], and beta is as large as the bound allows
    beta = attention_q._tilted[0][0]
    variance = advantages.var().item()
    assert beta == pytest.approx(min(1.0, (2 * KL_BOUND / variance) ** 0.5), rel=0.1)
    assert divergence.item() == pytest.approx(beta**2 / 2 * variance, rel=0.4)
    # log pi' - log pi = beta * A + const: what remains after the tilted preference does not depend on the action
    action = policy.distribution.sample(after)[0].reshape(n, -1)
    new, old = (policy.distribution.log_prob_and_entropy(parameters, action)[0] for parameters in (after, given))
    preferred = attention_q.advantages(latent, given, action)
    assert (new - old - beta * preferred).std() < 1e-3


# --- by hand ---


def head_of(weights: list[list[float]], distribution) -> AttentionQ:
    """Whose head gives these weights for the latents (1, 0), (0, 1), ..."""
    attention_q = AttentionQ(len(weights), distribution, len(weights[0]))
    attention_q.head = th.nn.Linear(len(weights), len(weights[0]), bias=False)
    with th.no_grad():
        attention_q.head.weight.copy_(th.tensor(weights).T)
    return attention_q


def test_other_distributions_are_refused():
    with pytest.raises(ValueError, match=r"^attention_q=True tilts categorical and Gaussian actions, not Noise: leave it out"):
        AttentionQ(6, type("Noise", (), {})(), 2)


def test_the_head_starts_at_zero():
    attention_q = AttentionQ(6, DiagonalGaussian(), 2)
    assert attention_q.head(th.randn(5, 6)).abs().max() == 0
    assert [layer.weight.shape for layer in attention_q.head[::2]] == [(64, 6), (2, 64)]
    assert isinstance(attention_q.head[1], th.nn.Tanh)
    assert not attention_q.is_open and float(attention_q.evidence) == 0


def test_advantages_of_a_gaussian_by_hand():
    attention_q = head_of([[2.0, 3.0], [0.5, -1.0]], DiagonalGaussian())
    given = ActionParameters(th.tensor([[1.0, 2.0], [0.0, 0.0]]), log_std=th.tensor([1.0, 3.0]).log())
    actions = th.tensor([[3.0, 8.0], [1.0, 3.0]])
    advantages = attention_q.advantages(th.eye(2), given, actions)
    assert advantages.tolist() == pytest.approx([2 * 2 + 3 * 2, 0.5 * 1 - 1 * 1])


def test_tilt_of_a_gaussian_by_hand():
    attention_q = head_of([[0.3, 0.4], [0.03, 0.04]], DiagonalGaussian())
    given = ActionParameters(th.zeros(2, 2), log_std=th.tensor([1.0, 3.0]).log())
    offsets = attention_q.tilt(th.eye(2), given, in_rollout=True)
    # Variances 0.25 and 0.0025: beta = sqrt(0.02 / 0.25), and 1 at most
    betas = [0.08**0.5, 1.0]
    th.testing.assert_close(offsets[0], betas[0] * th.tensor([0.3, 0.4 * 3]))
    th.testing.assert_close(offsets[1], betas[1] * th.tensor([0.03, 0.04 * 3]))
    divergence = attention_q.divergence(given, offsets)
    assert divergence.tolist() == pytest.approx([0.01, 0.0025 / 2])
    assert attention_q._tilted == [pytest.approx((np.mean(betas), np.mean([0.01, 0.00125])))]


def test_advantages_and_tilt_of_categories_by_hand():
    """Two groups of two and three, with probabilities (1/4, 3/4) and (1/2, 0 by its mask, 1/2)"""
    distribution = Categoricals(ACTION_SPACES["MultiDiscrete"])
    attention_q = head_of([[1.0, 2.0, 3.0, 100.0, 5.0]], distribution)
    masks = th.tensor([[True, True, True, False, True]])
    given = ActionParameters(
        th.tensor([[0.0, 3.0, 7.0, 9.0, 7.0]]).mul(th.tensor([1, np.log(3) / 3, 1, 1, 1])).float(), None, masks
    )
    latent = th.ones(1, 1)
    means = 1 / 4 + 2 * 3 / 4, (3 + 5) / 2
    for action, value in (((0, 0), 1 + 3), ((1, 0), 2 + 3), ((0, 2), 1 + 5), ((1, 2), 2 + 5)):
        advantage = attention_q.advantages(latent, given, th.tensor([action]).float())
        assert advantage.item() == pytest.approx(value - sum(means), rel=1e-5)
    variance = (1 / 4 + 4 * 3 / 4 - means[0] ** 2) + ((9 + 25) / 2 - means[1] ** 2)
    beta = (0.02 / variance) ** 0.5
    offsets = attention_q.tilt(latent, given, in_rollout=True)
    th.testing.assert_close(offsets, beta * th.tensor([[1.0, 2.0, 3.0, 100.0, 5.0]]))
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    kl = 0.0
    for old, weights in ((p, np.array([1.0, 2.0])), (q, np.array([3.0, 5.0]))):
        new = old * np.exp(beta * weights)
        new /= new.sum()
        kl += (new * np.log(new / old)).sum()
    assert attention_q.divergence(given, offsets).item() == pytest.approx(kl, rel=1e-3)
    assert attention_q._tilted == [pytest.approx((beta, kl), rel=1e-3)]


def test_what_does_not_depend_on_the_action_tilts_nothing():
    """Equal weights have no variance: the offsets stay finite and change no probability."""
    distribution = Categoricals(ACTION_SPACES["Discrete"])
    attention_q, given = head_of([[4.0, 4.0, 4.0]], distribution), ActionParameters(th.tensor([[0.0, 1.0, 2.0]]))
    offsets = attention_q.tilt(th.ones(1, 1), given)
    assert offsets.tolist() == [[4.0, 4.0, 4.0]]  # beta is 1 at most
    assert attention_q.divergence(given, offsets).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["Discrete", "Box"])
def test_learning_moves_the_head_alone(name):
    policy = make_policy(3, ACTION_SPACES[name], attention_q=True)
    latent, latent_pi = th.randn(4, 6, requires_grad=True), th.randn(4, 6, requires_grad=True)
    given = policy.action_parameters(latent_pi)
    actions = th.zeros(4, 2 if name == "Box" else 1)
    policy.attention_q.advantages(latent, given, actions).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.attention_q.parameters())
    assert latent.grad is None and latent_pi.grad is None and policy.action_net.weight.grad is None
    assert name == "Discrete" or policy.log_std.grad is None
    offsets = policy.attention_q.tilt(latent, given)
    assert not offsets.requires_grad


# --- the gate ---


def gate_of(expected_of) -> AttentionQ:
    """Sixty rollouts of advantages, correlated over ten steps or so, beside predictions"""
    rng, attention_q = np.random.default_rng(0), AttentionQ(6, Categoricals(ACTION_SPACES["Discrete"]), 3)
    opened_once = False
    for _ in range(60):
        noise = rng.normal(size=(20 * BLOCK, 1))
        advantages = sum(0.9**k * np.roll(noise, k, axis=0) for k in range(30))
        attention_q.update_gate(expected_of(rng, advantages), advantages)
        opened_once |= attention_q.is_open
    attention_q.opened_once = opened_once
    return attention_q


def test_gate_stays_shut_for_random_predictions():
    assert not gate_of(lambda rng, advantages: rng.normal(size=advantages.shape)).opened_once
    assert not gate_of(lambda rng, advantages: np.zeros(advantages.shape)).opened_once
    assert not gate_of(lambda rng, advantages: -advantages).opened_once


def test_gate_opens_for_good_predictions():
    assert gate_of(lambda rng, advantages: 0.2 * advantages + rng.normal(size=advantages.shape)).is_open


def closed_gate() -> AttentionQ:
    return AttentionQ(2, DiagonalGaussian(), 1)


def blocks_of(n_steps: int, n_envs: int, seed: int = 4) -> tuple[np.ndarray, np.ndarray, float]:
    """Predictions and advantages that agree a little, and the evidence of whole blocks"""
    rng = np.random.default_rng(seed)
    predicted, advantages = rng.normal(size=(n_steps, n_envs)), rng.normal(size=(n_steps, n_envs)) + 5
    advantages += 0.03 * predicted
    agreement = predicted * (advantages - advantages.mean())
    block = min(64, n_steps)
    means = [agreement[i * block : (i + 1) * block, env].mean() for i in range(n_steps // block) for env in range(n_envs)]
    return predicted, advantages, float(np.mean(means) / (np.std(means, ddof=1) / np.sqrt(len(means))))


@pytest.mark.parametrize(("n_steps", "n_envs"), [(256, 2), (300, 2), (64, 8), (100, 8), (10, 8), (10, 40)])
def test_evidence_is_a_mean_by_its_standard_error(n_steps, n_envs):
    predicted, advantages, evidence = blocks_of(n_steps, n_envs)
    assert 0.05 < abs(evidence) < MAX_EVIDENCE
    attention_q = closed_gate()
    logged = attention_q.update_gate(predicted, advantages)
    assert logged == {"beta": 0.0, "kl": 0.0, "evidence": pytest.approx(0.2 * evidence), "open": 0.0}
    assert float(attention_q.evidence) == pytest.approx(0.2 * evidence)
    attention_q.update_gate(predicted, advantages)
    assert float(attention_q.evidence) == pytest.approx((0.8 * 0.2 + 0.2) * evidence)


def test_the_constants_are_those_that_were_derived():
    assert (BLOCK, MIN_BLOCKS, DECAY, MAX_EVIDENCE) == (64, 8, 0.8, 3.0)
    assert OPEN_ABOVE == pytest.approx(4 * ((1 - DECAY) / (1 + DECAY)) ** 0.5)
    assert (1 - DECAY) * MAX_EVIDENCE < OPEN_ABOVE  # one rollout alone does not open it


@pytest.mark.parametrize(("n_steps", "n_envs"), [(10, 7), (64, 7), (64 * 7 + 63, 1)])
def test_a_rollout_of_few_blocks_says_nothing_and_old_evidence_fades(n_steps, n_envs):
    predicted, advantages, _ = blocks_of(n_steps, n_envs)
    attention_q = closed_gate()
    attention_q.evidence.fill_(2.0)
    attention_q.update_gate(predicted, advantages)
    assert float(attention_q.evidence) == pytest.approx(0.8 * 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_evidence_of_one_rollout_is_bounded(sign):
    rng, attention_q = np.random.default_rng(0), closed_gate()
    advantages = rng.normal(size=(1280, 1))
    attention_q.update_gate(sign * advantages, advantages)
    assert float(attention_q.evidence) == pytest.approx(sign * 0.2 * 3)


def test_agreement_without_variance_says_nothing():
    attention_q = closed_gate()
    attention_q.update_gate(np.ones((64, 8)), np.ones((64, 8)))
    assert float(attention_q.evidence) == 0


def test_open_is_above_the_limit_and_not_on_it():
    attention_q = closed_gate()
    attention_q.evidence.fill_(OPEN_ABOVE)
    limit = attention_q.evidence.clone()
    attention_q.evidence.fill_(2.0)
    assert attention_q.is_open
    attention_q.evidence.fill_(1.33)
    assert not attention_q.is_open
    assert float(limit) == pytest.approx(4 / 3)


def test_what_was_tilted_in_a_rollout_is_logged_once():
    attention_q = head_of([[0.3, 0.4], [0.03, 0.04]], DiagonalGaussian())
    given = ActionParameters(th.zeros(1, 2), log_std=th.zeros(2))
    for latent in th.eye(2):
        attention_q.tilt(latent[None], given, in_rollout=True)
    logged = attention_q.update_gate(np.zeros((4, 1)), np.zeros((4, 1)))
    assert logged["beta"] == pytest.approx((0.08**0.5 + 1) / 2)
    assert logged["kl"] == pytest.approx((0.01 + 0.00125) / 2)
    logged = attention_q.update_gate(np.zeros((4, 1)), np.zeros((4, 1)))
    assert (logged["beta"], logged["kl"]) == (0, 0)
    attention_q.evidence.fill_(3.0)
    assert attention_q.update_gate(np.zeros((4, 1)), np.zeros((4, 1)))["open"] == 1.0


# --- in the policy ---


@pytest.mark.parametrize("actor", ACTORS)
def test_shut_gate_changes_nothing(actor):
    policy = make_policy(3, attention_q=True, **ACTORS[actor])
    assert policy.remembers == (actor != "MLP actor")
    buffer = make_buffer(policy, 5, 2)
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), 0.2)
    with th.no_grad():
        output = policy.start_acting(buffer)(th.zeros(2, 3), np.zeros(2, dtype=bool), None)
    assert output.logit_offsets is None


@pytest.mark.parametrize("actor", ACTORS)
def test_what_is_logged_of_a_rollout_is_the_rollouts_alone(actor):
    """A model may predict for as long as it likes, within a callback too, and nothing is kept of it."""
    policy = opened(make_policy(3, attention_q=True, **ACTORS[actor]))
    buffer, outputs = tilted_rollout(policy, n_rollouts=1)
    assert len(policy.attention_q._tilted) == len(outputs) == 13
    obs = np.zeros((2, 3), dtype=np.float32)
    policy.predict(obs, None, np.ones(2, dtype=bool))
    with th.no_grad():
        policy.evaluate_actions(th.as_tensor(obs), th.zeros(2))
    assert len(policy.attention_q._tilted) == 13
    assert buffer.logit_offsets.shape == (13, 2, 3)


@pytest.mark.parametrize(
    ("name", "actor"), [*((name, "MLP actor") for name in RUN_SPACES), ("Box", "memory actor"), ("Discrete", "shared")]
)
def test_runs_and_is_logged(name, actor, tmp_path):
    model = AAC(
        "MlpPolicy", random_env(actions=name), policy_kwargs={**TINY, **ACTORS[actor], "attention_q": True}, **SMALL
    ).learn(20)
    assert not model.policy.tilts
    opened(model.policy)
    with th.no_grad():
        model.policy.attention_q.head[-1].bias.normal_()
    model.learn(20, log_interval=None)  # else what is logged of the rollout has been written out
    logged = model.logger.name_to_value
    assert 0 < logged["rollout/attention_q_kl"] <= 1.5 * KL_BOUND
    for key in ("rollout/attention_q_beta", "rollout/attention_q_evidence", "train/attention_q_loss"):
        assert key in logged and np.isfinite(logged[key])
    opened(model.policy)
    model.save(tmp_path / "model.zip")
    loaded = AAC.load(tmp_path / "model.zip", env=random_env(actions=name))
    assert loaded.policy.tilts
    obs = loaded.env.reset()
    actions, state = model.predict(obs, deterministic=True)
    others, _ = loaded.predict(obs, deterministic=True)
    assert state is not None
    np.testing.assert_array_equal(actions, others)
    evaluate_policy(loaded, random_env(actions=name), n_eval_episodes=2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="attention_q=True needs attention, but n_layers=0"):
        make_policy(3, attention_q=True, n_layers=0)
    with pytest.raises(ValueError, match="attention_q=True was given with use_sde=True"):
        make_policy(3, ACTION_SPACES["Box"], attention_q=True, use_sde=True)
