"""
Steps per second of one training run on several processes, and how long these wait for each other's messages.

    python benchmarks/several_processes.py
    torchrun --nproc-per-node=2 benchmarks/several_processes.py
    torchrun --nproc-per-node=2 benchmarks/several_processes.py --env popgym-RepeatPreviousMedium-v0 --memory --n-envs 16
        --n-steps 128 --batch-size 256 --n-epochs 5

Environments and minibatches are those of all processes together: each gets its part. The first rollout does not count.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
import torch.distributed as dist
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_attention_ac import AAC, distributed
from sb3_attention_ac.compare.names import register_environments


@contextlib.contextmanager
def timed_messages() -> Iterator[dict[str, float]]:
    """Number of messages between the processes, and seconds in them"""
    spent = {"messages": 0.0, "seconds": 0.0}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent["messages"] += 1
            spent["seconds"] += time.perf_counter() - start
            return result

        return call

    given = dist.all_reduce, dist.all_gather_object
    dist.all_reduce, dist.all_gather_object = [timed(function) for function in given]
    try:
        yield spent
    finally:
        dist.all_reduce, dist.all_gather_object = given


def main() -> None:
    """Print a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="Environment ID")
    parser.add_argument("--memory", action="store_true", help="A memory actor")
    parser.add_argument("--n-envs", type=int, default=8, help="Environments of all processes")
    parser.add_argument("--n-steps", type=int, default=256, help="Steps of each environment in a rollout")
    parser.add_argument("--batch-size", type=int, default=64, help="Minibatch of all processes")
    parser.add_argument("--n-epochs", type=int, default=10, help="Number of epochs")
    parser.add_argument("--rollouts", type=int, default=8, help="Rollouts that count")
    parser.add_argument("--device", default="cpu", help="PyTorch device")
    parser.add_argument("--subproc", action="store_true", help="Every environment in a process of its own")
    args = parser.parse_args()
    th.set_num_threads(1)
    register_environments()
    distributed.start(th.device(args.device))
    n, rank = distributed.world_size(), distributed.rank()
    env = make_vec_env(args.env, args.n_envs // n, vec_env_cls=SubprocVecEnv if args.subproc else None)
    kwargs = {"memory_actor": True, "share_encoder": True, "context_length": 64} if args.memory else {}
    sizes = {"n_steps": args.n_steps, "batch_size": args.batch_size // n, "n_epochs": args.n_epochs}
    model = AAC("MlpPolicy", env, policy_kwargs=kwargs, seed=0, device=args.device, **sizes)
    rollout = args.n_steps * args.n_envs
    model.learn(rollout)
    with timed_messages() as spent:
        start = time.perf_counter()
        model.learn(args.rollouts * rollout, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
    if rank == 0:
        steps = args.rollouts * rollout
        print(
            f"| {args.env} | {n} | {args.n_envs} | {steps / seconds:.0f} | {spent['messages'] / args.rollouts:.0f} | "
            f"{1e6 * spent['seconds'] / max(spent['messages'], 1):.0f} | {spent['seconds'] / seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
