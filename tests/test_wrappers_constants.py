"""Hidden constants: drawn anew in each episode, put where the simulator reads them, shown under a key of their own."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_attention_ac.wrappers import HiddenConstants
from sb3_attention_ac.wrappers.constants_presets import find_preset

PENDULUM, CARTPOLE, ACROBOT, LANDER = "Pendulum-v1", "CartPole-v1", "Acrobot-v1", "LunarLander-v3"
MUJOCO = ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5"]
# Gymnasium's own values. LunarLander has no wind by default
DEFAULTS = {
    PENDULUM: {"gravity": 10, "mass": 1, "length": 1},
    CARTPOLE: {"gravity": 9.8, "cart_mass": 1, "pole_mass": 0.1, "length": 0.5, "force": 10},
    ACROBOT: {"mass_1": 1, "mass_2": 1, "center_1": 0.5, "center_2": 0.5, "inertia": 1},
    LANDER: {"gravity": -10, "wind": 0, "turbulence": 0},
    **{task: dict.fromkeys(("gravity", "mass", "friction", "damping", "strength"), 1) for task in MUJOCO},
}


def needs(task):
    if task in MUJOCO:
        pytest.importorskip("mujoco")
    if task == LANDER:
        pytest.importorskip("Box2D")


def trajectory(env, seed=0, options=None, n=30):
    """:return: Observations without the constants, and rewards"""
    env.action_space.seed(1)
    obs, _ = env.reset(seed=seed, options=options)
    rows = []
    for _ in range(n):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rows.append(np.append(obs["observation"] if isinstance(obs, dict) else obs, reward))
        if terminated or truncated:
            break
    return np.array(rows)


@pytest.mark.parametrize("task", DEFAULTS)
def test_with_its_own_values_a_task_is_what_it_was(task):
    """Also after an episode with other values: nothing adds up."""
    needs(task)
    env = HiddenConstants(gym.make(task))
    assert set(env.ranges) == set(DEFAULTS[task])
    for low, high in env.ranges.values():
        assert low < high
    env.reset(seed=5)
    env.step(env.action_space.sample())
    own = trajectory(env, options={"constants": DEFAULTS[task]})
    plain = gym.make(task, **({"enable_wind": True, "wind_power": 0, "turbulence_power": 0} if task == LANDER else {}))
    plain.reset(seed=0)
    plain.action_space.seed(1)
    rows = []
    for _ in range(len(own)):
        obs, reward, *_ = plain.step(plain.action_space.sample())
        rows.append(np.append(obs, reward))
    np.testing.assert_allclose(own, rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("task", DEFAULTS)
def test_each_constant_changes_what_happens(task):
    needs(task)
    env = HiddenConstants(gym.make(task))
    n = 150 if task == LANDER or task in MUJOCO else 30
    own = trajectory(env, options={"constants": DEFAULTS[task]}, n=n)
    for name, (low, high) in env.ranges.items():
        changes = []
        for value in (low, high):
            other = trajectory(env, options={"constants": {**DEFAULTS[task], name: value}}, n=n)
            changes.append(len(other) != len(own) or np.abs(other - own).max() > 1e-4)
        assert any(changes), name


def test_mass_of_a_mujoco_model_is_mass_everywhere():
    pytest.importorskip("mujoco")
    env = HiddenConstants(gym.make("Hopper-v5"), {"mass": (0.5, 2.0)})
    model = env.unwrapped.model
    mass, inertia, subtree = model.body_mass.copy(), model.body_inertia.copy(), model.body_subtreemass.copy()
    for factor in (2.0, 0.5, 1.0):
        env.reset(seed=0, options={"constants": {"mass": factor}})
        np.testing.assert_allclose(model.body_mass, factor * mass)
        np.testing.assert_allclose(model.body_inertia, factor * inertia)
        np.testing.assert_allclose(model.body_subtreemass, factor * subtree)


def test_cartpoles_sums_and_products_follow():
    env = HiddenConstants(gym.make(CARTPOLE))
    env.reset(seed=0, options={"constants": {"cart_mass": 2.0, "pole_mass": 0.5, "length": 1.0}})
    cartpole = env.unwrapped
    assert (cartpole.masscart, cartpole.masspole, cartpole.length) == (2.0, 0.5, 1.0)
    assert (cartpole.total_mass, cartpole.polemass_length) == (2.5, 0.5)


def test_the_seed_decides_whatever_the_environment_draws():
    """LunarLander draws more once there is wind; and one reset is one."""
    pytest.importorskip("Box2D")
    env = HiddenConstants(gym.make(LANDER))
    first, *others = [env.reset(seed=5) for _ in range(3)]
    for obs, info in others:
        assert info["constants"] == first[1]["constants"]
        np.testing.assert_array_equal(obs["observation"], first[0]["observation"])
    assert env.reset()[1]["constants"] != first[1]["constants"]
    once = {"wrapper_class": HiddenConstants, "monitor_kwargs": {"allow_early_resets": False}}
    make_vec_env(PENDULUM, n_envs=2, seed=0, **once).reset()


def test_a_second_wrapper_sets_the_constants_of_the_first_one_not_their_product():
    pytest.importorskip("mujoco")
    env = gym.make("Hopper-v5")
    mass = env.unwrapped.model.body_mass.copy()
    for factor in (2.0, 3.0):
        HiddenConstants(env, {"mass": (factor, factor)}).reset(seed=0)
        np.testing.assert_allclose(env.unwrapped.model.body_mass, factor * mass)


def test_wind_alone_brings_no_turbulence():
    pytest.importorskip("Box2D")
    env = HiddenConstants(gym.make(LANDER), {"wind": (15, 15)})
    env.reset(seed=0)
    lander = env.unwrapped
    assert lander.enable_wind and (lander.wind_power, lander.turbulence_power, lander.gravity) == (15, 0, -10)
    gravity = HiddenConstants(gym.make(LANDER), {"gravity": (-5, -5)})
    gravity.reset(seed=0)
    assert not gravity.unwrapped.enable_wind and gravity.unwrapped.world.gravity.y == -5


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice about the wrapped environment
@pytest.mark.parametrize("task", [PENDULUM, CARTPOLE])
def test_gymnasium_accepts_it(task):
    check_env(HiddenConstants(gym.make(task).unwrapped), skip_render_check=True)


def test_values_are_new_in_each_episode_follow_the_seed_and_fill_the_range():
    env = HiddenConstants(gym.make(PENDULUM))
    _, info = env.reset(seed=3)
    first = info["constants"]
    values = [env.reset()[1]["constants"]["gravity"] for _ in range(200)]
    assert len(set(values)) == 200
    low, high = env.ranges["gravity"]
    assert low <= min(values) < low + 0.5 and high - 0.5 < max(values) <= high
    assert env.reset(seed=3)[1]["constants"] == first != env.reset(seed=4)[1]["constants"]


def test_constants_say_nothing_about_the_start():
    """Both come from one generator, one after the other: not from the same numbers."""
    env = HiddenConstants(gym.make(PENDULUM))
    pairs = []
    for seed in range(300):
        obs, _ = env.reset(seed=seed)
        pairs.append([*obs["privileged"], *obs["observation"]])
    correlation = np.corrcoef(np.array(pairs).T)[:3, 3:]
    assert np.abs(correlation).max() < 0.2


def test_what_is_shown():
    env = HiddenConstants(gym.make(PENDULUM), shown=["length", "gravity"])
    options = {"constants": {"gravity": 5.0, "length": 1.5, "mass": 0.7}}
    obs, info = env.reset(seed=0, options=options)
    np.testing.assert_array_equal(obs["privileged"], np.float32([1, -1]))
    assert info["constants"]["mass"] == 0.7 and env.unwrapped.m == 0.7  # set, though not shown
    obs, *_ = env.step(env.action_space.sample())
    np.testing.assert_array_equal(obs["privileged"], np.float32([1, -1]))
    assert env.observation_space.contains(obs)
    env.reset()
    assert env.unwrapped.m != 0.7  # options are for one episode
    nothing = HiddenConstants(gym.make(PENDULUM), shown=[])
    assert list(nothing.reset(seed=0)[0]) == ["observation"]


def test_ones_own_simulator():
    class Scale(gym.Env):
        observation_space = spaces.Dict({"weight": spaces.Box(0, 100, (1,))})
        action_space = spaces.Discrete(2)
        payload = 0.0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return {"weight": np.array([self.payload], dtype=np.float32)}, {}

        def step(self, action):
            return self.reset()[0], 0.0, False, True, {}

    def set_constants(env, values):
        env.unwrapped.payload = values["payload"]

    env = HiddenConstants(Scale(), {"payload": (2.0, 6.0)}, set_constants)
    obs, info = env.reset(seed=0)
    assert set(obs) == {"weight", "privileged"}
    assert obs["weight"] == np.float32(info["constants"]["payload"])
    np.testing.assert_allclose(obs["privileged"], (obs["weight"] - 4) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match="'privileged' already"):
        HiddenConstants(env, {"payload": (0, 1)}, set_constants)
    with pytest.raises(ValueError, match="no constants for Scale"):
        HiddenConstants(Scale(), {"payload": (0, 1)})
    with pytest.raises(ValueError, match="needs ranges"):
        HiddenConstants(Scale(), set_constants=set_constants)


def test_wrong_names_and_ranges():
    env = gym.make(PENDULUM)
    with pytest.raises(ValueError, match=r"ranges has \['weight'\]: the constants are \['gravity', 'length', 'mass'\]"):
        HiddenConstants(env, {"weight": (0, 1)})
    with pytest.raises(ValueError, match=r"shown has \['mass'\]"):
        HiddenConstants(env, {"gravity": (5, 15)}, shown=["mass"])
    with pytest.raises(ValueError, match="the low end first"):
        HiddenConstants(env, {"gravity": (15, 5)})
    with pytest.raises(ValueError, match="'constants'"):
        HiddenConstants(env).reset(options={"constants": {"weight": 1}})


def test_sb3_gives_each_environment_values_of_its_own():
    venv = make_vec_env(PENDULUM, n_envs=3, seed=0, wrapper_class=HiddenConstants)
    privileged = venv.reset()["privileged"]
    assert privileged.shape == (3, 3) and len(np.unique(privileged[:, 0])) == 3


def test_a_preset_belongs_to_classes_derived_from_its_own():
    pytest.importorskip("Box2D")
    assert find_preset(gym.make("LunarLanderContinuous-v3")) is find_preset(gym.make(LANDER))
