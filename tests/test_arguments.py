"""Arguments and spaces that a user may try: each has its effect, or is refused or warned of in words."""

import inspect
import warnings
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import OBSERVATION_SPACES, SMALL, TINY, RandomEnv, random_env
from trajectories import ACTORS

from sb3_attention_ac import AAC
from sb3_attention_ac.argument_names import closest_names
from sb3_attention_ac.policies import AttentionActorCriticMultiInputPolicy, AttentionActorCriticPolicy

BOX = OBSERVATION_SPACES["Box"]


# --- the self-supervised loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"aux_coef": 0.5}, r"aux_coef=0.5 has no effect: it needs an aux_loss, but there is no aux_loss"),
        ({"mask_ratio": 0.4}, r"mask_ratio=0.4 has no effect: it needs a masked prediction"),
        ({"temperature": 0.2}, r"temperature=0.2 has no effect: it needs the target 'contrastive'"),
        ({"n_trajectories": 10}, r"n_trajectories=10 has no effect: it needs a masked prediction"),
        ({"aux_loss": "next_step", "mask_ratio": 0.4}, r"mask_ratio=0.4 .* targets \['next_step'\]"),
        ({"aux_loss": "next_step", "n_trajectories": 1}, r"n_trajectories=1 "),
        ({"aux_loss": "value", "temperature": 1.0}, r"temperature=1.0 .* targets \['return'\]"),
        ({"policy_kwargs": {"memory_actor": True}, "mask_ratio": 0.1}, r"mask_ratio=0.1 .* targets \['next_step'\]"),
        ({"policy_kwargs": {"memory_actor": True}, "aux_loss": None, "aux_coef": 1.0}, r"aux_coef=1.0 .*there is no aux_loss"),
    ],
    ids=str,
)
def test_options_of_a_loss_that_is_not_asked_for(given, words):
    """Once, with the place where they are given"""
    with pytest.warns(UserWarning, match=words) as caught:
        AAC("MlpPolicy", random_env(), **{**SMALL, **given})
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize(
    "given",
    [
        {"aux_loss": "next_step", "aux_coef": 0.5},
        {"aux_loss": "contrastive", "aux_coef": 0.5, "mask_ratio": 0.4, "temperature": 0.2, "n_trajectories": 4},
        {"aux_loss": ["reward", "next_step"], "mask_ratio": 0.4, "n_trajectories": 4},
        {"policy_kwargs": {"memory_actor": True}, "aux_coef": 0.3},
        {"aux_coef": None, "mask_ratio": 0.25, "temperature": 0.1, "n_trajectories": 0},
    ],
    ids=str,
)
def test_options_that_have_an_effect_are_not_warned_of(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AAC("MlpPolicy", random_env(), **{**SMALL, **given})


@pytest.mark.parametrize(
    ("policy", "given"),
    [
        ("MlpPolicy", {"batch_size": 7}),
        ("MlpPolicy", {"batch_size": 64}),
        ("MlpPolicy", {"batch_size": 12, "policy_kwargs": {"memory_actor": True}}),
        ("MultiInputPolicy", {"policy_kwargs": {"memory_actor": True, "critic_keys": ["bits"]}}),
    ],
    ids=str,
)
def test_warnings_point_at_who_gave_the_arguments(policy, given):
    with pytest.warns(UserWarning) as caught:
        AAC(policy, random_env("Dict" if policy == "MultiInputPolicy" else "Box"), **{**SMALL, **given})
    assert [warning.filename for warning in caught] == [__file__]


# --- names ------------------------------------------------------------------------------------------------------------


class OwnAlgorithm(AAC):
    """With an argument of its own, and the others passed on"""

    def __init__(self, *args: Any, mine: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mine = mine


@pytest.mark.parametrize("algorithm", [AAC, OwnAlgorithm])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memory_actor": True}, r"memory_actor is an argument of the policy.*policy_kwargs=dict\(memory_actor=True\)"),
        ({"context_length": 64}, r"policy_kwargs=dict\(context_length=64\)"),
        ({"net_arch": [8]}, r"policy_kwargs=dict\(net_arch=\[8\]\)"),
        ({"n_landmarks": 4}, r"policy_kwargs=dict\(n_landmarks=4\)"),
        ({"batchsize": 64}, r"'batchsize'; the closest known names are: .*batch_size"),
        ({"aux_loos": "value"}, r"'aux_loos'; the closest known names are: .*aux_loss"),
        ({"lstm": 64}, r"does not know the argument 'lstm'; known names: aux_coef, aux_loss"),
    ],
    ids=str,
)
def test_arguments_that_the_constructor_does_not_know(algorithm, given, words):
    with pytest.raises(TypeError, match=words):
        algorithm("MlpPolicy", random_env(), **SMALL, **given)


def test_a_long_list_of_names_says_that_it_goes_on():
    names = [f"{i:03}" for i in range(100)]
    assert closest_names("zzz", names[:40]) == "known names: " + ", ".join(names[:40])
    assert closest_names("zzz", names) == "known names: " + ", ".join(names[:40]) + " and 60 more"


def test_a_subclass_may_have_arguments_of_its_own():
    assert OwnAlgorithm("MlpPolicy", random_env(), mine=3, **SMALL).mine == 3


def test_the_constructors_signature_can_be_read():
    """By editors, documentation and tools that make command lines of it; PPO's arguments in PPO's order"""
    own = list(inspect.signature(AAC).parameters)
    assert own[: own.index("aux_loss")] == list(inspect.signature(PPO).parameters)
    assert inspect.signature(AAC).parameters["n_steps"].default == 2048


# --- policies of one's own, with other defaults -----------------------------------------------------------------------


class BySignature(AttentionActorCriticPolicy):
    def __init__(self, *args: Any, memory_actor: bool = True, share_encoder: bool = True, **kwargs: Any):
        super().__init__(*args, memory_actor=memory_actor, share_encoder=share_encoder, **kwargs)


class ByArgument(AttentionActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("memory_actor", True)
        super().__init__(*args, **kwargs)


class Always(ByArgument):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "memory_actor": True})


@pytest.mark.parametrize("policy", [BySignature, ByArgument, Always])
def test_defaults_go_with_the_policy_that_is_made(policy, tmp_path):
    """A memory actor's minibatch and loss, whoever says that it is one; and what is said has precedence"""
    env, settings = random_env(), {"n_steps": 256, "n_epochs": 1, "device": "cpu", "seed": 0}
    model = AAC(policy, env, **settings)
    assert (model.batch_size, model.aux_loss, model.aux_coef) == (256, ["next_step"], 1.0)
    assert model.policy.memory_actor and model.policy.next_step_prediction is not None
    assert not model.rollout_buffer.held_noise
    model.save(tmp_path / "model")
    assert AAC.load(tmp_path / "model", env=env).policy.memory_actor
    assert AAC(policy, env, **settings, batch_size=64, aux_loss=None, policy_kwargs={"context_length": 8}).batch_size == 64
    if policy is not Always:
        plain = AAC(policy, env, **settings, policy_kwargs={"memory_actor": False})
        assert (plain.batch_size, plain.aux_loss, plain.aux_coef, plain.policy.memory_actor) == (64, None, None, False)


def test_a_multi_input_policy_with_other_defaults():
    class Memory(AttentionActorCriticMultiInputPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{"memory_actor": True, "context_length": 5, **kwargs})

    model = AAC(Memory, random_env("Dict"), n_steps=64, n_epochs=1, device="cpu").learn(128)
    assert model.batch_size == 128 and model.policy.architecture.context_length == 5


# --- what learns ------------------------------------------------------------------------------------------------------


class Scaled(FlattenExtractor):
    def __init__(self, space: spaces.Space[Any]):
        super().__init__(space)
        self.scale = th.nn.Parameter(th.ones(self.features_dim))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return super().forward(obs) * self.scale


PARTS = {
    "features": ["features_extractor"],
    "actor": ["mlp_extractor.policy_net", "action_net"],
    "critic": ["mlp_extractor.value_net", "value_net"],
    "value head": ["value_net."],
    "attention": ["critic_network", "actor_network"],
    "all but a head": ["features_extractor", "mlp_extractor", "value_net", "critic_network", "actor_network", "prediction"],
    "everything": [""],
}


def is_frozen(name: str, part: str) -> bool:
    return any(name.startswith(prefix) or prefix in name for prefix in PARTS[part])


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("aux_loss", ["auto", "contrastive"])
def test_parts_can_be_frozen(actor, part, aux_loss):
    """As for fine-tuning: frozen parts stay as they are, the others learn"""
    policy_kwargs = {**TINY, **ACTORS[actor], "features_extractor_class": Scaled}
    model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, aux_loss=aux_loss, **{**SMALL, "learning_rate": 1e-2})
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    named = {name: p for name, p in model.policy.named_parameters() if ".key_" not in name}
    for name, parameter in named.items():
        parameter.requires_grad_(not is_frozen(name, part))
    before = {name: parameter.clone() for name, parameter in named.items()}
    model.learn(60)
    unmoved = {name for name, parameter in named.items() if th.equal(parameter, before[name])}
    frozen = {name for name in named if is_frozen(name, part)}
    assert frozen <= unmoved and frozen
    assert unmoved - frozen <= {"log_std"}
    assert all(parameter.requires_grad != is_frozen(name, part) for name, parameter in named.items())


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD])
def test_an_optimizer_over_some_parameters(actor, optimizer):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **ACTORS[actor]}, **SMALL)
    model.policy.optimizer = optimizer(model.policy.action_net.parameters(), lr=1.0)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(60)
    moved = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
    assert moved == {"action_net.weight", "action_net.bias"}


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.RMSprop])
def test_learning_rates_of_a_users_groups_are_as_in_ppo(actor, optimizer):
    """SB3 sets all groups to the learning rate; a factor of one's own is kept."""
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **ACTORS[actor]}, **{**SMALL, "learning_rate": 0.01})
    nets = [model.policy.mlp_extractor.parameters(), model.policy.value_net.parameters(), model.policy.action_net.parameters()]
    groups: Any = [{"params": list(parameters)} for parameters in nets]
    groups[2]["lr_scale"] = 0.5
    model.policy.optimizer = optimizer(groups, lr=1.0)
    model.learn(40)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [0.01, 0.01, 0.005]


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.SGD])
def test_attention_beside_an_mlp_actor_learns_faster_by_the_root_of_two(tmp_path, optimizer):
    """Its minibatches are twice as large. Also after loading, and with a schedule"""
    settings = {**SMALL, "learning_rate": lambda progress: 0.005 + 0.005 * progress}
    policy_kwargs = {**TINY, "optimizer_class": optimizer, "attention_q": True}
    model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, aux_loss=["reward", "next_step"], **settings)
    model.learn(40)
    model.save(tmp_path / "model")
    for made in (model, AAC.load(tmp_path / "model", env=random_env())):
        made.learn(40)
        rates = {id(p): group["lr"] for group in made.policy.optimizer.param_groups for p in group["params"]}
        for name, parameter in made.policy.named_parameters():
            attends = name.startswith(("critic_network", "attention_q", "masked_prediction", "next_step_prediction"))
            expected = 0.005 * 2**0.5 if attends else 0.005
            assert rates[id(parameter)] == pytest.approx(expected), name


def test_a_memory_actor_learns_at_one_rate():
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": True}, **{**SMALL, "learning_rate": 0.01})
    model.learn(20)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [0.01]


def weights_after(**settings: Any) -> dict[str, th.Tensor]:
    policy_kwargs = {**TINY, "optimizer_class": th.optim.SGD, **settings.pop("policy_kwargs", {})}
    settings = {**SMALL, "n_steps": 10, "batch_size": 20, "learning_rate": 1e-3, "max_grad_norm": 1e9, **settings}
    model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, **settings)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(20)
    return {name: parameter.detach() - before[name] for name, parameter in model.policy.named_parameters()}


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("vf_coef", [0.0, 2.0])
def test_the_value_coefficient_scales_the_values_steps(actor, vf_coef):
    """One step of plain gradient descent: twice the coefficient, twice the step; attention's included"""
    own = {"policy_kwargs": ACTORS[actor], "aux_loss": None}
    one, other = weights_after(vf_coef=1.0, **own), weights_after(vf_coef=vf_coef, **own)
    names = ["value_net.weight", "critic_network.output_proj.weight"]
    for name in names:
        assert one[name].any()
        th.testing.assert_close(other[name], vf_coef * one[name], rtol=1e-3, atol=1e-7)
    th.testing.assert_close(one["action_net.weight"], other["action_net.weight"], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("actor", ACTORS)
def test_the_entropy_coefficient_rewards_entropy(actor):
    """From a policy that is far from uniform, entropy alone leads towards it."""

    def entropy_after(ent_coef: float) -> tuple[float, float]:
        settings = {**SMALL, "n_steps": 20, "batch_size": 20, "n_epochs": 10, "learning_rate": 1e-2, "ent_coef": ent_coef}
        model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **ACTORS[actor]}, **settings)
        with th.no_grad():
            model.policy.action_net.bias.copy_(th.tensor([2.0, 0.0, 0.0]))
        obs = th.as_tensor(np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32))
        before = model.policy.get_distribution(obs).entropy().mean().item()
        model.learn(80)
        return before, model.policy.get_distribution(obs).entropy().mean().item()

    before, after = entropy_after(10.0)
    assert after > before + 0.1
    assert entropy_after(-10.0)[1] < before - 0.1


# --- spaces -----------------------------------------------------------------------------------------------------------

STARTS = {
    "Discrete": spaces.Discrete(3, start=4),
    "negative": spaces.Discrete(4, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3], start=[7, -1]),
}


@pytest.mark.parametrize("kind", [*ACTORS, "Q_att"])
@pytest.mark.parametrize("space", STARTS)
def test_discrete_actions_with_a_start(tmp_path, kind, space):
    """The environment checks each action; inside, they begin at zero."""
    env = DummyVecEnv([lambda: Monitor(RandomEnv(BOX, STARTS[space]))] * 2)
    policy_kwargs = {**TINY, **ACTORS.get(kind, {"attention_q": True})}
    model = AAC(
        "MlpPolicy", env, policy_kwargs=policy_kwargs, aux_loss="prediction", **{**SMALL, "n_steps": 60, "batch_size": 60}
    )
    model.learn(120)
    actions = model.rollout_buffer.actions
    sizes = getattr(STARTS[space], "nvec", getattr(STARTS[space], "n", None))
    assert (actions.min(axis=(0, 1)) == 0).all() and (actions.max(axis=(0, 1)) == np.array(sizes) - 1).all()
    evaluate_policy(model, env, 3)
    alone = np.zeros((60, 3), np.float32)
    taken = {tuple(np.ravel(action)) for action in model.predict(alone, episode_start=np.ones(60, dtype=bool))[0]}
    assert all(STARTS[space].contains(np.array(action).reshape(STARTS[space].shape)) for action in taken) and len(taken) > 1
    model.save(tmp_path / "model")
    loaded = AAC.load(tmp_path / "model", env=env)
    obs = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))


@pytest.mark.parametrize(
    ("observation_space", "action_space", "words"),
    [
        (spaces.Box(-1.0, 1.0, ()), spaces.Discrete(2), r"observation space is Box.*single number.*shape \(1,\).*Flatten"),
        (BOX, spaces.Box(-1.0, 1.0, ()), r"action space is Box.*single number.*shape \(1,\).*TransformAction"),
        (BOX, spaces.MultiDiscrete([[2, 3], [2, 2]]), r"(?s)action space is MultiDiscrete.*2 dimensions.*must have one"),
        (spaces.MultiDiscrete([[2, 3]]), spaces.Discrete(2), r"observation space is MultiDiscrete.*2 dimensions"),
        (BOX, spaces.MultiBinary([2, 2]), r"action space is MultiBinary.*2 dimensions"),
        (spaces.Discrete(3, start=1), spaces.Discrete(2), r"observation space Discrete\(3, start=1\) does not start at 0"),
        (spaces.MultiDiscrete([2, 2], start=[0, 3]), spaces.Discrete(2), r"does not start at 0.*subtract the start"),
        (spaces.Dict(a=BOX, b=spaces.Box(0.0, 1.0, ())), spaces.Discrete(2), r"single number"),
    ],
    ids=str,
)
@pytest.mark.parametrize("vectorized", [False, True])
def test_spaces_that_sb3_does_not_know_are_refused(observation_space, action_space, words, vectorized):
    env: Any = RandomEnv(observation_space, action_space)
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=words):
        AAC(policy, DummyVecEnv([lambda: env]) if vectorized else env, **SMALL)


class Registered(RandomEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, **kwargs: Any):
        super().__init__(BOX, spaces.Box(-1.0, 1.0, ()))


def test_spaces_of_an_environment_by_its_name(monkeypatch):
    monkeypatch.setitem(gym.registry, "Number-v0", gym.envs.registration.EnvSpec("Number-v0", Registered))
    with pytest.raises(ValueError, match=r"single number"):
        AAC("MlpPolicy", "Number-v0", **SMALL)


class Decided(AttentionActorCriticPolicy):
    """A policy of the user's own that takes no arguments of the network"""

    def __init__(self, observation_space, action_space, lr_schedule, use_sde=False, aux_targets=None, temperature=0.1):
        more = {"memory_actor": True, **TINY, "net_arch": [8]}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            use_sde=use_sde,
            aux_targets=aux_targets,
            temperature=temperature,
            **more,
        )


def test_a_policy_may_leave_no_choice(tmp_path):
    model = AAC(Decided, random_env(), **SMALL).learn(20)
    model.save(tmp_path / "model")
    AAC(Decided, random_env(), **SMALL).set_parameters(tmp_path / "model")
    observation = model.env.reset()
    assert (
        AAC.load(tmp_path / "model").predict(observation, deterministic=True)[0]
        == model.predict(observation, deterministic=True)[0]
    ).all()


class WithTarget(AttentionActorCriticPolicy):
    """As of off-policy algorithms: features extractors beside those of actor and critic"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.target_extractors = [self.make_features_extractor() for _ in range(3)]


def test_features_extractors_can_be_made_at_any_time():
    made = AAC(WithTarget, random_env(), policy_kwargs=TINY, **SMALL).policy.target_extractors
    assert [extractor.features_dim for extractor in made] == [3, 3, 3]


def test_the_length_of_chunks_is_that_of_the_policy():
    kwargs = {**SMALL, "n_steps": 24}
    kwargs |= {"batch_size": 16, "policy_kwargs": {**TINY, "memory_actor": True, "chunk_length": 8}}
    model = AAC("MlpPolicy", random_env(), **kwargs)
    assert model.rollout_buffer.chunk_length == model.policy.chunk_length == 8


def test_the_default_batch_size_is_that_of_the_environments_at_hand(tmp_path):
    kwargs = {**SMALL, "n_steps": 16, "policy_kwargs": {**TINY, "memory_actor": True}}
    del kwargs["batch_size"]
    model = AAC("MlpPolicy", random_env(), **kwargs)
    assert model.batch_size == 32  # the whole rollout
    model.save(tmp_path / "model")
    many = random_env(n_envs=16)
    assert AAC.load(tmp_path / "model").batch_size == 32
    assert AAC.load(tmp_path / "model", env=many).batch_size == 256
    assert AAC.load(tmp_path / "model", env=many, batch_size=32).batch_size == 32
    AAC("MlpPolicy", random_env(), **kwargs, batch_size=16).save(tmp_path / "chosen")
    assert AAC.load(tmp_path / "chosen", env=many).batch_size == 16


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize("in_dict", [False, True])
def test_truth_values_with_two_axes_are_observed(memory_actor, in_dict):
    """PPO takes them too"""
    space = spaces.MultiBinary([2, 3])
    env = RandomEnv(spaces.Dict(a=space, b=BOX) if in_dict else space, spaces.Discrete(2))
    policy_kwargs = {**TINY, "memory_actor": memory_actor}
    model = AAC("MultiInputPolicy" if in_dict else "MlpPolicy", env, policy_kwargs=policy_kwargs, **SMALL)
    model.learn(SMALL["n_steps"])
    model.predict(env.reset()[0])
