"""Which settings of two algorithms differ: who wins under other settings wins perhaps because of them."""

from collections.abc import Iterable
from typing import Any

from sb3_attention_ac.argument_names import default_arguments
from sb3_attention_ac.compare.names import known_algorithms
from sb3_attention_ac.compare.settings import Job

# What RL Zoo does where a file says nothing
ZOO: dict[str, Any] = {"n_envs": 1, "normalize": False, "frame_stack": None, "env_wrapper": None, "vec_env_wrapper": None}
ZOO |= {"env_kwargs": None, "callback": None, "monitor_kwargs": None, "vec_env": "gymnasium"}
# The algorithms' own business, the same for all runs, or without an effect on the numbers
LEFT_OUT = {"policy", "env", "n_timesteps", "seed", "device", "verbose", "tensorboard_log", "stats_window_size"}
LEFT_OUT |= {"rollout_buffer_class", "replay_buffer_class", "_init_setup_model"}


def settings(job: Job) -> dict[str, Any]:
    """
    :param job: A run
    :return: Its settings in the format of RL Zoo, with the defaults of algorithm and RL Zoo where it says nothing
    """
    defaults = default_arguments(known_algorithms()[job.algo])
    return {name: value for name, value in {**ZOO, **defaults, **job.hyperparams}.items() if name not in LEFT_OUT}


def differing_settings(jobs: Iterable[Job], first: str, others: Iterable[str]) -> list[str]:
    """
    :param jobs: Runs
    :param first: Name of a variant
    :param others: Names of variants
    :return: Names of the settings that the first and one of the others both have, and not the same, on some environment
    """
    by_name = {(job.variant, job.env): job for job in jobs}
    pairs = [(by_name[first, env], by_name.get((other, env))) for name, env in by_name if name == first for other in others]
    found = set()
    for mine, other in pairs:
        if other is not None:
            here, there = settings(mine), settings(other)
            found |= {name for name in here.keys() & there.keys() if here[name] != there[name]}
    return sorted(found)
