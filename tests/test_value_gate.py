"""Beside an MLP actor the MLP critic is PPO's, and what attention adds to it has to prove itself."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from trajectories import fill, make_buffer, make_policy, next_observations, random_windows

from sb3_attention_ac import AAC
from sb3_attention_ac.rollout_values import evaluate_rollout
from sb3_attention_ac.value_gate import MARGIN, RATE, ValueGate

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 3, "seed": 0, "device": "cpu"}


# --- the gate alone ---


def test_it_starts_closed_and_without_evidence():
    gate = ValueGate()
    assert gate.is_closed
    assert {name: float(value) for name, value in gate.state_dict().items()} == dict.fromkeys(
        ("gate", "explained", "square", "n_steps", "n_negligible"), 0
    )
    gate.gate.fill_(1e-9)
    assert not gate.is_closed


def test_two_updates_by_hand():
    """Advantages of standard deviation 2 with a mean of 10, residuals of the same pattern with a mean of 1"""
    pattern, gate = np.array([[1.0, -1.0], [-1.0, 1.0]]), ValueGate()
    gate.update(1 + 3 * pattern, 10 + 2 * pattern)  # by the standard deviation: 1.5 and 1 times the pattern
    explained, square = 0.1 * 1.5, 0.1 * 1.5**2
    assert float(gate.explained) == pytest.approx(explained)
    assert float(gate.square) == pytest.approx(square)
    assert float(gate.gate) == pytest.approx((explained - 0.05) / square)
    gate.update(np.array([[2.0, 0.0], [0.0, 2.0]]), 2 * pattern)
    explained, square = 0.9 * explained + 0.1 * 0.5, 0.9 * square + 0.1 * 0.25
    assert float(gate.explained) == pytest.approx(explained)
    assert float(gate.square) == pytest.approx(square)
    assert float(gate.gate) == pytest.approx((explained - 0.05) / square)
    assert (RATE, MARGIN) == (0.1, 0.05)


@pytest.mark.parametrize(("residual", "expected"), [(-1.0, 0.0), (0.01, 1.0)])
def test_it_stays_between_zero_and_one(residual, expected):
    pattern, gate = np.array([[1.0, -1.0]]), ValueGate()
    for _ in range(100):
        gate.update(residual * pattern + 0.2 * pattern * (residual > 0), pattern)
    assert float(gate.gate) == expected


@pytest.mark.parametrize("advantages", [np.full((2, 2), 3.0), np.array([[1.0, np.nan]]), np.array([[1.0, np.inf]])])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_advantages_that_say_nothing_move_nothing(advantages):
    gate = ValueGate()
    gate.update(np.array([[1.0, -1.0]]), np.array([[1.0, -1.0]]))
    before = {name: float(value) for name, value in gate.state_dict().items()}
    gate.update(np.ones_like(advantages) * np.array([1.0, -1.0]), advantages)
    assert {name: float(value) for name, value in gate.state_dict().items()} == before


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.5, 1.0, 2.0, -1.0])
def test_the_gate_finds_what_is_true(truth):
    """Returns hold ``truth`` times the residual, and noise: the gate settles there, less what the margin takes."""
    rng, gate, gates, std = np.random.default_rng(0), ValueGate(), [], 0.5
    for _ in range(200):
        residual = rng.normal(size=(256, 8))
        gate.update(residual, truth * residual + std * rng.normal(size=(256, 8)))
        gates.append(float(gate.gate))
    expected = truth - MARGIN * (truth**2 + std**2) ** 0.5
    assert abs(np.mean(gates[100:]) - np.clip(expected, 0, 1)) < 0.02


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_less_than_the_margin_is_chance(constant):
    """What explains less than the margin of the advantages' variance stays out, and so does a constant."""
    rng, gate = np.random.default_rng(0), ValueGate()
    for _ in range(50):
        residual = constant + 0.04 * rng.normal(size=(256, 8))
        gate.update(residual, residual + rng.normal(size=(256, 8)))
        assert gate.is_closed


def test_nothing_added_is_no_evidence():
    gate = ValueGate()
    gate.update(np.zeros((4, 2)), np.arange(8.0).reshape(4, 2))
    assert gate.is_closed


def quiet_gate(n_steps: int = 240) -> ValueGate:
    gate = ValueGate()
    gate.n_steps.fill_(n_steps)
    return gate


def judge(gate: ValueGate, share: float = 0.0) -> None:
    """One rollout of which the residual explains this share"""
    pattern = np.array([[1.0, -1.0], [-1.0, 1.0]])
    gate.update(share * pattern, pattern)


def test_attention_that_explains_nothing_is_skipped_in_fourteen_of_sixteen_rollouts():
    gate, rested = quiet_gate(), []
    for _ in range(64):
        rested.append(gate.is_skipped)
        if gate.is_skipped:
            gate.skip()
        else:
            judge(gate)
    assert rested == ([False] * 2 + [True] * 14) * 4


@pytest.mark.parametrize(
    ("n_steps", "share", "rests"), [(239, 0.0, False), (240, 0.0, True), (240, 0.19, True), (240, 0.21, False)]
)
def test_it_rests_after_its_warm_up_where_it_explains_less_than_a_fiftieth(n_steps, share, rests):
    gate = quiet_gate(n_steps)
    judge(gate, share)  # the average moves by a tenth
    gate.n_negligible += int(gate.n_negligible) > 0
    assert gate.is_skipped is rests


def test_it_stays_awake_once_it_explains_more():
    gate = quiet_gate()
    for _ in range(20):
        gate.skip() if gate.is_skipped else judge(gate)
    while gate.is_skipped:
        gate.skip()
    for _ in range(40):
        judge(gate, 0.5)
        assert not gate.is_skipped
    assert float(gate.gate) > 0.5


# --- in the policy ---


def test_while_attention_is_skipped_it_neither_learns_nor_is_judged(tmp_path):
    """The values are then the MLP critic's, and the run is PPO's with that seed"""
    model = AAC("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), **SMALL)
    judged, gate = [], model.policy.value_gate
    gate.update = lambda *arguments: judged.append(arguments)
    with th.no_grad():
        model.policy.critic_network.output_proj.weight.add_(1.0)
    gate.n_negligible.fill_(3)
    before = [parameter.clone() for parameter in model.policy.critic_network.parameters()]
    model.learn(4 * 128)
    assert judged == [] and int(gate.n_negligible) == 7
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.critic_network.parameters(), strict=True))
    np.testing.assert_array_equal(model.rollout_buffer.values, model.rollout_buffer.mlp_values)
    sb3 = PPO("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), **SMALL).learn(4 * 128)
    for name, parameter in sb3.policy.state_dict().items():
        th.testing.assert_close(model.policy.state_dict()[name], parameter, rtol=0, atol=1e-5)
    model.save(tmp_path / "model")
    assert int(AAC.load(tmp_path / "model", device="cpu").policy.value_gate.n_negligible) == 7


@pytest.mark.parametrize(
    "options",
    [
        {"policy_kwargs": {"attention_q": True}},
        {"aux_loss": "contrastive"},
        {"policy_kwargs": {"memory_actor": True}, "batch_size": 64},
    ],
    ids=["Q_att", "masked prediction", "memory actor"],
)
def test_attention_that_is_needed_otherwise_does_not_rest(options):
    model = AAC("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), **{**SMALL, **options})
    if model.policy.value_gate is not None:
        model.policy.value_gate.n_negligible.fill_(3)
    assert not model.policy.skips_attention
    before = model.policy.critic_network.output_proj.weight.clone()
    model.learn(128)
    assert not th.equal(before, model.policy.critic_network.output_proj.weight)


def test_it_does_not_confirm_itself():
    """
    The gate judges the residual by advantages under V_mlp alone. Under the values that the residual is part of, its own noise
    would come back in the advantages through lambda-returns and speak for itself or against itself.
    """
    model = AAC("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), **SMALL)
    gate, judged = model.policy.value_gate, []
    update = gate.update
    gate.update = lambda *arguments: judged.append(arguments) or update(*arguments)
    with th.no_grad():
        model.policy.critic_network.output_proj.weight.add_(th.randn(64, 64))
    gate.gate.fill_(0.5)
    model.learn(128)
    buffer = model.rollout_buffer
    residual, advantages = judged[0]
    np.testing.assert_allclose(buffer.values, buffer.mlp_values + 0.5 * residual, rtol=1e-5, atol=1e-6)
    assert np.abs(buffer.values - buffer.mlp_values).max() > 0.01
    assert not np.allclose(advantages, buffer.advantages, atol=1e-3)
    # At every step whose successor is in the rollout: a TD error of V_mlp, and what follows of the advantages
    goes_on = 1 - buffer.episode_starts[1:]
    errors = buffer.rewards[:-1] + 0.99 * goes_on * buffer.mlp_values[1:] - buffer.mlp_values[:-1]
    expected = errors + 0.99 * 0.95 * goes_on * advantages[1:]
    inside = np.ones_like(goes_on, dtype=bool)
    for step, env in buffer.terminal_observations:
        inside[step, env] = False
    np.testing.assert_allclose(advantages[:-1][inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_while_it_is_closed_advantages_are_those_of_the_buffer():
    model = AAC("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), **SMALL)
    judged = []
    model.policy.value_gate.update = lambda *arguments: judged.append(arguments)
    model.learn(128)
    assert judged[0][1] is model.rollout_buffer.advantages
    np.testing.assert_allclose(judged[0][0], np.zeros((64, 2)), atol=1e-6)  # attention adds nothing at first


def trained_on_one_rollout(n_layers: int, clip_range_vf: float | None) -> tuple[AAC, PPO]:
    """Both with the same weights, on the same rollout, in the same minibatches"""
    env = make_vec_env("CartPole-v1", 1, seed=0)  # of several, the buffers have the transitions in another order
    sb3 = PPO("MlpPolicy", env, clip_range_vf=clip_range_vf, **SMALL)
    ours = AAC("MlpPolicy", env, policy_kwargs={"n_layers": n_layers}, clip_range_vf=clip_range_vf, **SMALL)
    ours.learn(64)
    sb3.learn(64)
    sb3.policy.load_state_dict({name: ours.policy.state_dict()[name] for name in sb3.policy.state_dict()})
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(sb3.rollout_buffer, name, getattr(ours.rollout_buffer, name).copy())
    sb3.rollout_buffer.generator_ready = False
    fresh = th.optim.Adam(sb3.policy.parameters(), lr=3e-4, eps=1e-5)
    sb3.policy.optimizer = fresh
    ours.policy.optimizer.state.clear()
    sb3._current_progress_remaining = ours._current_progress_remaining
    return ours, sb3


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
def test_without_attention_it_is_ppo(clip_range_vf):
    """The same update of actor and critic as SB3's PPO: losses, minibatches, clipping of gradients, Adam."""
    ours, sb3 = trained_on_one_rollout(0, clip_range_vf)
    before = sb3.policy.value_net.weight.clone()
    for model in (ours, sb3):
        np.random.seed(7)
        model.train()
    assert not th.equal(sb3.policy.value_net.weight, before)
    for name, parameter in sb3.policy.state_dict().items():
        th.testing.assert_close(ours.policy.state_dict()[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy_kwargs", [{}, {"n_layers": 0}])
def test_where_target_kl_stops_the_actor_the_run_stays_ppos(policy_kwargs):
    """Attention goes on, and takes nothing from the random stream: the next rollouts and minibatches are PPO's too"""
    settings = {"n_steps": 128, "batch_size": 64, "n_epochs": 5, "target_kl": 0.003, "learning_rate": 3e-3, "seed": 0}
    env, other = (make_vec_env("CartPole-v1", 2, seed=0) for _ in range(2))
    ours = AAC("MlpPolicy", env, policy_kwargs=policy_kwargs, device="cpu", **settings).learn(4 * 256)
    sb3 = PPO("MlpPolicy", other, device="cpu", **settings).learn(4 * 256)
    assert sb3._n_updates < 4 * 5 and (ours.policy.value_gate is None or ours.policy.value_gate.is_closed)
    for name, parameter in sb3.policy.state_dict().items():
        th.testing.assert_close(ours.policy.state_dict()[name], parameter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_attention_does_not_move_the_mlps(gate):
    policy, windows = make_policy(4), random_windows(0, 12, 0.2)
    policy.value_gate.gate.fill_(gate)
    critic = policy.critic_output(policy.encode_windows(windows, 8).critic)
    (critic.mlp_values.detach() + critic.residual).square().sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved and all(name.startswith("critic_network.") for name in moved)


def test_values_are_a_mixture():
    policy, windows = make_policy(4), random_windows(0, 12, 0.2)
    encoded = policy.encode_windows(windows, 8).critic
    assert encoded.hidden is not None
    mlp, whole = policy.value_net(encoded.mlp_latent).squeeze(-1), policy.value_net(encoded.latent).squeeze(-1)
    for gate in (0.0, 0.25, 1.0):
        policy.value_gate.gate.fill_(gate)
        output = policy.critic_output(encoded)
        th.testing.assert_close(output.values, (1 - gate) * mlp + gate * whole)
        th.testing.assert_close(output.mlp_values, mlp)
        th.testing.assert_close(output.residual, whole - mlp)
    assert not th.allclose(mlp, whole)


def test_a_rollouts_values_are_a_mixture():
    policy = make_policy(4)
    buffer, rng = make_buffer(policy, 12, 2), np.random.default_rng(0)
    fill(buffer, rng, np.ones(2, dtype=bool), 0.2)
    last_obs = next_observations(buffer, rng)
    open_, closed = None, None
    for gate in (0.0, 1.0):
        policy.value_gate.gate.fill_(gate)
        closed, open_ = open_, evaluate_rollout(policy, buffer, last_obs)
    np.testing.assert_allclose(open_.values, closed.mlp_values + closed.residual, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(closed.values, closed.mlp_values)
    for name in ("last", "terminal"):
        th.testing.assert_close(getattr(closed, name).values, getattr(open_, name).mlp_values)
        assert not th.allclose(getattr(open_, name).values, getattr(open_, name).mlp_values)


def test_the_gate_is_saved(tmp_path):
    ours, _ = trained_on_one_rollout(1, None)
    ours.policy.value_gate.gate.fill_(0.4)
    ours.save(tmp_path / "model")
    assert float(AAC.load(tmp_path / "model", device="cpu").policy.value_gate.gate) == pytest.approx(0.4)


@pytest.mark.parametrize("options", [{"memory_actor": True}, {"n_layers": 0}])
def test_a_memory_actor_has_no_gate_and_neither_has_a_critic_without_attention(options):
    assert make_policy(4, **options).value_gate is None
