"""
When the gate of an MLP actor's critic opens, how far, and in how many rollouts attention learns.

    python benchmarks/attention_gate.py CartPoleNoVel-v1 PendulumNoVel-v1 CartPole-v1 --steps 130000 --seeds 100 101

SB3's defaults but 8 environments of 256 steps; MuJoCo's tasks and pendulums are normalized. ``--never-rest`` keeps attention
learning where it explains nothing.
"""

import argparse
from typing import Any

import numpy as np
import rl_zoo3.import_envs  # noqa: F401
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import AAC, value_gate


class Trace(BaseCallback):
    """Notes the gate before each update, and the steps of attention so far"""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[float] = []
        self.steps: list[int] = []

    def _on_rollout_end(self) -> None:
        gate: Any = self.model.policy.value_gate
        self.gates.append(float(gate.gate))
        self.steps.append(int(gate.n_steps))

    def _on_step(self) -> bool:
        return True


def run(env_id: str, steps: int, seed: int) -> list[Any]:
    """
    :param env_id: Environment
    :param steps: Steps of training
    :param seed: Seed
    :return: A row of the table
    """
    env: Any = make_vec_env(env_id, 8, seed=seed)
    gamma = 0.95 if "Pendulum" in env_id else 0.99
    if "Pendulum" in env_id or "mujoco" in str(env.get_attr("spec")[0].entry_point):
        env = VecNormalize(env, gamma=gamma)
    trace = Trace()
    model: Any = AAC("MlpPolicy", env, n_steps=256, gamma=gamma, seed=seed, device="cpu").learn(steps, callback=trace)
    opened = next((str(i) for i, gate in enumerate(trace.gates) if gate > 0), "never")
    learned = np.diff([*trace.steps, int(model.policy.value_gate.n_steps)]) > 0
    returns = np.mean([episode["r"] for episode in model.ep_info_buffer])
    return [env_id, seed, opened, f"{np.mean(trace.gates):.2f}", f"{learned.mean():.2f}", f"{returns:.1f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="+")
    parser.add_argument("--steps", type=int, default=130_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--never-rest", action="store_true")
    given = parser.parse_args()
    th.set_num_threads(1)
    if given.never_rest:
        value_gate.WARM_UP = 2**62
    print("| task | seed | opens before rollout | mean gate | rollouts learned from | return |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for env_id in given.envs:
        for seed in given.seeds:
            print("|", " | ".join(map(str, run(env_id, given.steps, seed))), "|", flush=True)


if __name__ == "__main__":
    main()
