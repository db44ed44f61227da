"""Command line: ``python -m sb3_attention_ac.compare --algos aac ppo --envs CartPole-v1``."""

import argparse
import io
import sys
from collections.abc import Sequence

from sb3_attention_ac.compare.backends import SETTINGS
from sb3_attention_ac.compare.comparison import compare
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.settings import Protocol

DESCRIPTION = "Train algorithms on environments over seeds, and report. Runs found in the folder are not repeated."


def parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    default = Protocol()
    parse = argparse.ArgumentParser("python -m sb3_attention_ac.compare", description=DESCRIPTION)
    what = parse.add_argument_group("what to compare")
    what.add_argument("--algos", nargs="+", default=[], metavar="ALGO", help="algorithms by their names in RL Zoo")
    what.add_argument("--variants", nargs="+", default=[], metavar="FILE", help="YAML files of variants, or 'ladder'")
    what.add_argument("--envs", nargs="+", default=[], metavar="ENV", help="environments; ENV=STEPS for own steps")
    what.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    what.add_argument("--first-seed", type=int, default=0, help="first of the seeds (default: %(default)s)")
    what.add_argument("--hyperparams", default="zoo", help="'zoo' (default), 'sb3', a folder with files <algo>.yml, or a file")
    what.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments")
    how = parse.add_argument_group("protocol")
    how.add_argument("--steps", type=int, default=default.steps, help="training steps per run (default: %(default)s)")
    how.add_argument(
        "--evaluations", type=int, default=default.evaluations, help="evaluations in a run (default: %(default)s)"
    )
    how.add_argument("--episodes", type=int, default=default.episodes, help="episodes per evaluation (default: %(default)s)")
    how.add_argument("--stochastic", action="store_true", help="sample the actions of evaluations")
    how.add_argument("--device", default=default.device, help="device of PyTorch (default: %(default)s)")
    where = parse.add_argument_group("where to run and what to write")
    where.add_argument("--out", default="comparison", help="folder for results and report; existing results are kept")
    where.add_argument("--n-jobs", type=int, help="runs at the same time (default: one per physical core; Ray: per processor)")
    where.add_argument("--backend", default="local", help=f"{' or '.join(SETTINGS)} (default: %(default)s)")
    where.add_argument("--address", help="address of the Ray cluster (default: RAY_ADDRESS, else one on this machine)")
    where.add_argument("--rerun-corrupt", action="store_true", help="run again what has a corrupt result file")
    where.add_argument("--references", help="YAML file of own reference scores")
    where.add_argument(
        "--seconds",
        type=float,
        nargs="?",
        const=0.0,
        help="also compare after these seconds of training (default: the quickest run's)",
    )
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: Command line, None for that of the process
    :return: Exit code: 0 if all runs have finished, 1 if some failed, 2 if nothing could be reported
    """
    given = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows shall not end hours of training in an error
    try:
        protocol = Protocol(
            steps=given.steps,
            evaluations=given.evaluations,
            episodes=given.episodes,
            deterministic=not given.stochastic,
            device=given.device,
            gym_packages=tuple(given.gym_packages),
        )
        comparison = compare(
            given.algos,
            given.envs,
            given.seeds,
            given.out,
            protocol=protocol,
            variants=given.variants,
            hyperparams=given.hyperparams,
            first_seed=given.first_seed,
            n_jobs=given.n_jobs,
            backend=given.backend,
            address=given.address,
            rerun_corrupt=given.rerun_corrupt,
            references=given.references,
            seconds=given.seconds,
        )
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in comparison.failures:
        print(f"failed: {failure}", file=sys.stderr)
    print((comparison.report.parent / "table.md").read_text(encoding="utf-8"))
    print(f"Report: {comparison.report}")
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
