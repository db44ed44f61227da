"""What is run: the protocol all runs share, the variants of algorithms, and the single runs (jobs)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sb3_attention_ac.compare.errors import CompareError


@dataclass(frozen=True)
class Protocol:
    """
    What is the same for every run of a comparison.

    :param steps: Training steps per run, summed over the parallel environments
    :param evaluations: Number of evenly spaced evaluations after the one of the untrained policy; the last is the final one
    :param episodes: Episodes per evaluation
    :param evaluation_seed: Episode ``i`` of every evaluation starts from the seed ``evaluation_seed + i``
    :param deterministic: Whether the most probable action is taken in evaluations
    :param device: Device of PyTorch, e.g. ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param gym_packages: Modules to import before the environments are created, because they register some
    :raises CompareError: If a number is not positive, or ``gym_packages`` is text
    """

    steps: int = 100_000
    evaluations: int = 20
    episodes: int = 20
    evaluation_seed: int = 10_000
    deterministic: bool = True
    device: str = "cpu"
    gym_packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.gym_packages, str):
            raise CompareError(
                f"gym_packages={self.gym_packages!r} was given, but it must be a tuple: gym_packages=({self.gym_packages!r},)."
            )
        for name in ("steps", "evaluations", "episodes"):
            if getattr(self, name) < 1:
                raise CompareError(f"{name}={getattr(self, name)} was given, but it must be at least 1.")


def with_own_steps(env: str, protocol: Protocol) -> tuple[str, Protocol]:
    """
    :param env: Id of an environment, or ``"id=steps"`` for one with its own number of training steps
    :param protocol: What is given for all of them
    :return: The id, and the protocol for it
    :raises CompareError: If what follows the equals sign is not a positive whole number
    """
    name, equals, steps = env.partition("=")
    if equals and not steps.isdecimal():
        raise CompareError(f"{env!r} was given; the equals sign must be followed by a number of steps, as in '{name}=100000'.")
    return name, replace(protocol, steps=int(steps)) if equals else protocol


def named_with_steps(envs: Sequence[str] | Mapping[str, int | None]) -> list[str]:
    """
    :param envs: Ids of environments, ``"id=steps"`` where one has its own number of training steps, or a mapping of ids to
        steps
    :return: Such ids
    """
    if not isinstance(envs, Mapping):
        return list(envs)
    return [f"{env}={steps}" if steps else env for env, steps in envs.items()]


@dataclass(frozen=True)
class Variant:
    """
    An algorithm under a name of its own, with changed hyperparameters.

    :param name: Name in tables, pictures and folders
    :param algo: Name of the algorithm in RL Zoo, e.g. ``"ppo"``
    :param changes: Hyperparameters in the format of RL Zoo that replace those of ``source``;
        mappings (``policy_kwargs``) are merged
    :param source: ``"zoo"``, ``"sb3"``, a folder with files ``<algo>.yml``, a file, or None for the source of the comparison
    """

    name: str
    algo: str
    changes: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class Job:
    """
    One run: everything needed to repeat it.

    :param variant: Name of the variant
    :param algo: Name of the algorithm in RL Zoo
    :param env: Id of the environment
    :param seed: Seed of the run
    :param hyperparams: Hyperparameters in the format of RL Zoo, all changes applied
    :param protocol: What all runs share
    """

    variant: str
    algo: str
    env: str
    seed: int
    hyperparams: dict[str, Any]
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.variant} on {self.env}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Folder of the run, relative to the folder of the comparison."""
        return Path("runs", self.variant, self.env.replace("/", "--"), f"seed-{self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """
        :return: The job as JSON would give it back (lists for tuples); hyperparameters that JSON would change (keys that are
            numbers, dates) as YAML
        """
        values = asdict(self)
        if not _is_json(values["hyperparams"]):
            values["hyperparams"] = yaml.safe_dump(values["hyperparams"], sort_keys=False)
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def identity(self) -> dict[str, Any]:
        """
        :return: Whatever determines the run's numbers; which modules register environments does not
        """
        values = self.to_dict()
        del values["protocol"]["gym_packages"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Job":
        """
        :param values: What :meth:`to_dict` returned
        :return: The same job
        """
        protocol, hyperparams = dict(values["protocol"]), values["hyperparams"]
        protocol["gym_packages"] = tuple(protocol["gym_packages"])
        hyperparams = yaml.safe_load(hyperparams) if isinstance(hyperparams, str) else hyperparams
        return cls(**{**values, "hyperparams": hyperparams, "protocol": Protocol(**protocol)})


def _is_json(value: Any) -> bool:
    """:return: Whether JSON gives back the same, but for tuples"""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, bool, int, float))


def differences(there: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """
    :param there: Settings of a result that exists
    :param asked: Settings asked for now
    :param prefix: Name of the enclosing setting, ends with a dot
    :return: One text per setting that differs, names of nested settings joined by dots
    """
    found = []
    for key in sorted({**there, **asked}):
        old, new = there.get(key, "not set"), asked.get(key, "not set")
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} there, {new!r} requested")
    return found
