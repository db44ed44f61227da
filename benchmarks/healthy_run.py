"""
Write the table of docs/guide/logs.md: what a healthy run logs. It trains for a minute.

    python benchmarks/healthy_run.py
"""

import re
import tempfile
from pathlib import Path

import pandas as pd
import rl_zoo3.import_envs  # noqa: F401  (registers CartPoleNoVel-v1)
from last_returns import DOCS, markdown
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_attention_ac import AAC

PAGE = DOCS / "guide" / "logs.md"
TABLE = re.compile(r"(<!-- healthy run -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
STEPS = (13_312, 25_600, 51_200, 75_776, 100_352)
KEYS = {
    "rollout/ep_rew_mean": ".0f",
    "train/approx_kl": ".4f",
    "train/clip_fraction": ".2f",
    "train/entropy_loss": ".2f",
    "train/explained_variance": ".2f",
    "train/value_loss": ".2g",
    "train/aux_next_observation_loss": ".4f",
    "train/aux_next_observation_baseline": ".4f",
}


def progress() -> pd.DataFrame:
    """:return: One row per update of the quickstart's run, by the number of steps"""
    with tempfile.TemporaryDirectory() as folder:
        env = make_vec_env("CartPoleNoVel-v1", n_envs=8)
        model = AAC("MlpPolicy", env, n_steps=128, policy_kwargs=dict(memory_actor=True), seed=0, device="cpu")
        model.set_logger(configure(folder, ["csv"]))
        model.learn(STEPS[-1])
        return pd.read_csv(Path(folder, "progress.csv")).set_index("time/total_timesteps")


def table(logged: pd.DataFrame) -> str:
    """
    :param logged: See :func:`progress`
    :return: A table in Markdown
    """
    # Losses and divergences of an update are logged with the rollout after it
    rows = [[f"`{key}`", *(format(logged[key][steps], form) for steps in STEPS)] for key, form in KEYS.items()]
    return markdown(["steps", *(f"{steps:,}" for steps in STEPS)], rows)


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda match: match[1] + table(progress()) + match[2], PAGE.read_text()))
