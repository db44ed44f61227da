"""
Steps per second and peak memory of AttentionActorCritic, of SB3's algorithms, and of the environments alone.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --envs HalfCheetah-v5 --n-envs 8
    python benchmarks/throughput.py --algos aac-memory ppo_lstm --envs CartPole-v1 --n-envs 8
    python benchmarks/throughput.py --algos aac-memory ppo_lstm --gym-packages popgym --envs popgym-RepeatFirstEasy-v0
        --n-envs 16 --n-steps 128 --batch-size 256 --n-epochs 5 --network context_length=64 share_encoder=1
    python benchmarks/throughput.py --sweep context_length --envs CartPole-v1 --n-envs 8
    python benchmarks/throughput.py --envs CarRacing-v3 --n-envs 8 --subproc --device cuda --network d_model=256
        --bf16 --compile

Every algorithm runs in a process of its own, one process at a time, and the repetitions are interleaved (A B C A B C ...), so
that a machine which gets slower or faster does so for all of them. Every repetition is a training run with a seed of its own:
what a step of an environment costs may depend on what was learned (LunarLander-v3), and that differs between runs. All
algorithms have the same n_steps, batch size, epochs and width; A2C, without minibatches and epochs, has the n_steps of
its own defaults. "aac-mlp" is AAC without attention. "random" steps the environments with random actions; its process has
loaded the same libraries, so its peak memory is what the others start from. "sbx" is PPO of SBX (``pip install sbx-rl``); it
compiles in the rollout that does not count. JAX takes all processors it finds: give all the same one, as by ``taskset -c 0``.

Where observations are images the policies are convolutional. ``--bf16`` and ``--compile`` are for all algorithms: updates
under ``torch.autocast`` with bfloat16, and networks compiled by ``torch.compile`` (in the rollout that does not count).

"steps/s" and its range are whole repetitions by the clock. The "CPU" columns count the process's own processor time instead
(of all its threads), which goes on when other processes or the host of a virtual machine take the processor away: with one
thread these are the ones to compare on a busy machine. With a GPU only the clock tells: there the columns are training and
collecting apart, by the clock, and the peak is of the GPU's memory. ``--subproc`` steps every environment in a process of its
own, for environments that take longer than all the rest; their time is not the process's own, only the clock tells there too.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from throughput_tables import Measurement, Result, Setup, comparison_table, summarize, sweep_table

ALGORITHMS = ("aac", "aac-mlp", "ppo", "a2c", "random", "aac-memory", "ppo_lstm")
PEERS = ("sbx",)  # of packages that are not among this one's extras
SWEEPS: dict[str, list[int]] = {
    "context_length": [16, 32, 64, 128, 256, 512, 1024],
    "d_model": [16, 32, 64, 128, 256],
    "n_layers": [1, 2, 4, 8],
    "n_landmarks": [0, 4, 8, 16, 32],
    "n_envs": [1, 4, 16, 64],
    "n_steps": [64, 128, 256, 512, 1024],
}
NETWORK_SWEEPS = ("context_length", "d_model", "n_layers", "n_landmarks")


# --- in the process of one algorithm ------------------------------------------------------------------------------------


@functools.cache
def _make_env(setup: Setup) -> Any:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    for package in setup.packages:
        importlib.import_module(package)
    return make_vec_env(setup.env, n_envs=setup.n_envs, vec_env_cls=SubprocVecEnv if setup.subproc else DummyVecEnv)


def _make_model(setup: Setup, seed: int) -> Any:
    import torch as th
    from sb3_contrib import RecurrentPPO
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.preprocessing import is_image_space

    from sb3_attention_ac import AAC

    th.set_num_threads(setup.threads)
    env = _make_env(setup)
    env.seed(seed)
    if setup.algo == "random":
        return env
    kind = "Cnn" if is_image_space(env.observation_space) else "Mlp"
    common = {"seed": seed, "device": setup.device}
    if setup.algo == "a2c":
        return A2C(f"{kind}Policy", env, **common)  # type: ignore[arg-type]
    common |= {"n_steps": setup.n_steps, "batch_size": setup.batch_size, "n_epochs": setup.n_epochs}
    if setup.algo == "sbx":
        peer: Any = importlib.import_module("sbx").PPO
        return peer("MlpPolicy", env, **{**common, "device": "auto"})
    if setup.algo == "ppo":
        return PPO(f"{kind}Policy", env, **common)  # type: ignore[arg-type]
    network: dict[str, Any] = dict(setup.network)
    if setup.algo == "ppo_lstm":
        width = {"lstm_hidden_size": network.get("d_model", 64)}
        return RecurrentPPO(f"{kind}LstmPolicy", env, policy_kwargs=width, **common)  # type: ignore[arg-type]
    network["memory_actor"] = setup.algo == "aac-memory"
    if setup.algo == "aac-mlp":
        network["n_layers"] = 0
    aux_loss = None if setup.aux_loss == "none" else setup.aux_loss
    return AAC(f"{kind}Policy", env, aux_loss=aux_loss, policy_kwargs=network, **common)  # type: ignore[arg-type]


def _compile(policy: Any) -> None:
    """The parts of a policy that are called as a whole"""
    mlps = policy.mlp_extractor
    networks = (getattr(policy, name, None) for name in ("actor_network", "critic_network"))
    for module in (policy.features_extractor, mlps.policy_net, mlps.value_net, *networks):
        if module is not None:
            module.compile()


def _make_ready(setup: Setup, seed: int) -> Any:
    import torch as th

    model = _make_model(setup, seed)
    if setup.algo == "random":
        return model
    if setup.compiled:
        _compile(model.policy)
    if setup.bf16:
        model.train = th.autocast(setup.device, dtype=th.bfloat16)(model.train)
    return model


class Stopwatch:
    """
    Time since it was made, by the clock, and more closely the processor time, also of some functions.

    :param setup: What is measured; where the processor does not do all of it, the clock stands for processor time
    """

    def __init__(self, setup: Setup):
        self._on_gpu = setup.on_gpu
        self._now = time.perf_counter if setup.by_clock else time.process_time
        self._spent = {"training": 0.0, "env": 0.0}
        self._start, self._clock_start = self._now(), time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """
        :param name: "training" or "env"
        :param function: An algorithm's update, or the step of its environments
        :return: The same, timed
        """

        def timed(*args: Any) -> Any:
            start = self._now()
            result = function(*args)
            self._spent[name] += self._now() - start
            return result

        return timed

    def read(self, steps: int) -> Measurement:
        """
        :param steps: Number of steps since the start, over all environments
        :return: What they took
        """
        clock_seconds, seconds = time.perf_counter() - self._clock_start, self._now() - self._start
        peak = _peak_gpu_mib() if self._on_gpu else _peak_mib()
        return Measurement(steps, clock_seconds, seconds, self._spent["training"], self._spent["env"], peak)


def _train(setup: Setup, model: Any, steps: int) -> Measurement:
    before, stopwatch = model.num_timesteps, Stopwatch(setup)
    train, step = model.train, model.env.step
    model.train, model.env.step = stopwatch.timed("training", train), stopwatch.timed("env", step)
    model.learn(steps, reset_num_timesteps=False)
    model.train, model.env.step = train, step
    return stopwatch.read(model.num_timesteps - before)


def _step_randomly(setup: Setup, env: Any, steps: int) -> Measurement:
    env.reset()
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]
    n_steps, stopwatch = -(-steps // env.num_envs), Stopwatch(setup)
    step = stopwatch.timed("env", env.step)
    for i in range(n_steps):
        step(actions[i % len(actions)])
    return stopwatch.read(n_steps * env.num_envs)


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _peak_gpu_mib() -> float:
    import torch as th

    return th.cuda.max_memory_reserved() / 2**20 if th.cuda.is_available() else 0.0


def _run(setup: Setup, model: Any, steps: int) -> Measurement:
    return _step_randomly(setup, model, steps) if setup.algo == "random" else _train(setup, model, steps)


def measure(setup: Setup, steps: int, seed: int) -> Measurement:
    """
    One repetition, called in the setup's own process: a training run of its own.

    :param setup: What to measure
    :param steps: Number of steps, over all environments
    :param seed: Seed of the run
    :return: What they took
    """
    model = _make_ready(setup, seed)
    # One rollout that does not count: while the process waited for its turn, its memory may have been reclaimed
    _run(setup, model, 1)
    measurement = _run(setup, model, steps)
    del model
    gc.collect()  # the next repetition shall find the memory as this one did
    return measurement


def describe_machine(command: str) -> str:
    """
    Called in a process of its own: a process inherits the peak memory of the one that starts it, which must stay small.

    :param command: Command line
    :return: Versions and hardware
    """
    from sb3_attention_ac.compare.provenance import provenance

    made = provenance(command)
    hardware = ", ".join(f"{name} {value}" for name, value in made["hardware"].items() if value and name != "machine")
    versions = ", ".join(f"{name} {value}" for name, value in made["versions"].items())
    return f"- {made['time']}, revision {made['git_revision']}, `{command}`\n- {hardware}\n- {versions}"


# --- in the process of the benchmark --------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_process() -> Iterator[ProcessPoolExecutor]:
    """A fresh process that lives as long as the context"""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        yield process


def measure_interleaved(setups: list[Setup], steps: int, repeats: int) -> list[Result]:
    """
    :param setups: What to compare
    :param steps: Steps of a repetition
    :param repeats: Number of repetitions
    :return: The result of each setup
    """
    measurements: list[list[Measurement]] = [[] for _ in setups]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(own_process()) for _ in setups]
        # Libraries are imported, environments made and networks compiled before anything counts, by all at once
        for first in [process.submit(measure, setup, 1, 0) for setup, process in zip(setups, processes, strict=True)]:
            first.result()
        for seed in range(repeats):
            for setup, process, done in zip(setups, processes, measurements, strict=True):
                done.append(process.submit(measure, setup, steps, seed).result())
    return [summarize(setup, done) for setup, done in zip(setups, measurements, strict=True)]


def conditions(args: argparse.Namespace) -> str:
    """
    :param args: Arguments of the command line
    :return: Versions, hardware and settings
    """
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    with own_process() as process:
        machine: str = process.submit(describe_machine, f"python {' '.join(sys.argv)}").result()
    return (
        f"{machine}\n- load average before: {load}\n- medians of {args.repeats} interleaved repetitions of "
        f"{args.steps} steps; {args.threads} PyTorch thread(s), device {args.device}\n"
        f"- n_steps {args.n_steps}, batch size {args.batch_size}, {args.n_epochs} epochs, network {dict(args.network)}, "
        f"auxiliary loss {args.aux_loss}, bf16 {args.bf16}, compile {args.compile}, subproc {args.subproc}"
    )


def _network_argument(text: str) -> tuple[str, int]:
    name, value = text.split("=")
    return name, int(value)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """
    :param arguments: None for those of the command line
    :return: The options
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "LunarLander-v3"], help="Environment IDs")
    parser.add_argument("--n-envs", nargs="+", type=int, default=[1, 8], help="Numbers of environments")
    parser.add_argument("--algos", nargs="+", choices=ALGORITHMS + PEERS, default=["aac", "ppo", "a2c", "random"])
    parser.add_argument("--steps", type=int, default=6_144, help="Steps of a repetition, over all environments")
    parser.add_argument("--repeats", type=int, default=5, help="Number of repetitions, with the seeds 0, 1, ...")
    parser.add_argument("--threads", type=int, default=1, help="Number of PyTorch threads")
    parser.add_argument("--device", default="cpu", help="PyTorch device")
    parser.add_argument("--n-steps", type=int, default=256, help="Steps of each environment in a rollout (not of A2C)")
    parser.add_argument("--batch-size", type=int, default=64, help="Minibatch size")
    parser.add_argument("--n-epochs", type=int, default=10, help="Number of epochs")
    parser.add_argument("--network", nargs="+", type=_network_argument, default=[], help="AAC's, as d_model=256 n_layers=2")
    parser.add_argument("--aux-loss", default="auto", help="AAC's self-supervised loss; none for none")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="Packages that register environments, as in RL Zoo")
    parser.add_argument("--subproc", action="store_true", help="Every environment in a process of its own")
    parser.add_argument("--bf16", action="store_true", help="Updates under torch.autocast with bfloat16")
    parser.add_argument("--compile", action="store_true", help="Networks compiled by torch.compile")
    parser.add_argument("--sweep", choices=list(SWEEPS), help="Change this setting instead; costs are those of --algos")
    parser.add_argument("--sizes", nargs="+", type=int, help="Values of the setting (default: some powers of two)")
    parser.add_argument("--out", type=Path, help="Also write a Markdown file")
    return parser.parse_args(arguments)


def _sweep_setup(setup: Setup, name: str, size: int) -> Setup:
    if name in NETWORK_SWEEPS:
        return setup._replace(network=(*setup.network, (name, size)))
    return setup._replace(**{name: size})  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: None for those of the command line
    """
    args = parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the processes that are started
    texts = ["# Throughput", conditions(args)]
    print(texts[1], flush=True)

    def report(title: str, text: str) -> None:
        texts.extend([f"## {title}", text])
        print(f"\n{title}\n\n{text}", flush=True)

    for env, n_envs in itertools.product(args.envs, args.n_envs[:1] if args.sweep == "n_envs" else args.n_envs):
        hyperparams = (args.n_steps, args.batch_size, args.n_epochs, args.device, args.threads, tuple(args.network))
        others = (args.bf16, args.compile, args.aux_loss, tuple(args.gym_packages), args.subproc)
        setups = [Setup(algo, env, n_envs, *hyperparams, *others) for algo in args.algos]
        if args.sweep is None:
            results = measure_interleaved(setups, args.steps, args.repeats)
            report(f"{env}, {n_envs} environment(s)", comparison_table(results))
            continue
        sizes = args.sizes or SWEEPS[args.sweep]
        for setup in setups:
            swept = [_sweep_setup(setup, args.sweep, size) for size in sizes]
            results = measure_interleaved(swept, args.steps, args.repeats)
            where = env if args.sweep == "n_envs" else f"{env}, {n_envs} environment(s)"
            report(f"{setup.algo} on {where}: cost over {args.sweep}", sweep_table(args.sweep, sizes, results))
    if args.out is not None:
        args.out.write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
