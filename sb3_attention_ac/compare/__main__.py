"""Command line: ``python -m sb3_attention_ac.compare --algos aac ppo --envs CartPole-v1``."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_attention_ac.compare.backends import NAMES
from sb3_attention_ac.compare.comparison import compare
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.settings import Protocol
from sb3_attention_ac.compare.variants import SHIPPED

DESCRIPTION = "Train algorithms on environments over seeds, and report. Runs found in the folder are not repeated."
CAUTION = (
    "Files of --variants, --hyperparams and --suite are programs: RL Zoo evaluates texts in them as Python (policy_kwargs, "
    "normalize and others) and imports the classes they name. Read those of others before you use them."
)


def parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    default = Protocol()
    shipped = " or ".join(f"'{path.stem}'" for path in sorted(SHIPPED.glob("*.yml")))
    parse = argparse.ArgumentParser("python -m sb3_attention_ac.compare", description=DESCRIPTION, epilog=CAUTION)
    what = parse.add_argument_group("what to compare")
    what.add_argument("--algos", nargs="+", default=[], metavar="ALGO", help="algorithms by their names in RL Zoo")
    what.add_argument("--variants", nargs="+", default=[], metavar="FILE", help=f"YAML files of variants, or {shipped}")
    what.add_argument("--envs", nargs="+", default=[], metavar="ENV", help="environments; ENV=STEPS sets its steps")
    what.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    what.add_argument("--first-seed", type=int, default=0, help="first of the seeds (default: %(default)s)")
    what.add_argument("--hyperparams", default="zoo", help="'zoo' (default), 'sb3', a folder with files <algo>.yml, or a file")
    what.add_argument("--suite", metavar="FOLDER", help="take all of these from FOLDER/suite.yml, keep FOLDER/results.csv")
    what.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments")
    how = parse.add_argument_group("protocol")
    how.add_argument("--steps", type=int, default=default.steps, help="training steps per run (default: %(default)s)")
    how.add_argument(
        "--evaluations", type=int, default=default.evaluations, help="evaluations in a run (default: %(default)s)"
    )
    how.add_argument("--episodes", type=int, default=default.episodes, help="episodes per evaluation (default: %(default)s)")
    how.add_argument("--stochastic", action="store_true", help="sample the actions of evaluations")
    how.add_argument("--device", default=default.device, help="PyTorch device (default: %(default)s)")
    where = parse.add_argument_group("where to run and what to write")
    where.add_argument("--out", default="comparison", help="folder for results and report; existing results are kept")
    where.add_argument("--n-jobs", type=int, help="concurrent runs (default: one per physical core; Ray: per processor)")
    where.add_argument("--backend", default="local", help=f"{' or '.join(NAMES)} (default: %(default)s)")
    where.add_argument("--address", help="address of the Ray cluster (default: RAY_ADDRESS, else one on this machine)")
    where.add_argument("--rerun-corrupt", action="store_true", help="repeat runs whose result file is corrupt")
    where.add_argument("--references", help="YAML file with your own reference scores")
    where.add_argument(
        "--seconds",
        type=float,
        nargs="?",
        const=0.0,
        help="also compare after this many seconds of training (no number: as many as the quickest run took)",
    )
    return parse


def _parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """
    :return: What the command line says, and where it names a suite, what that one says
    :raises CompareError: If the suite is wrong, or the command line says something else
    """
    parse = parser()
    given = vars(parse.parse_args(arguments))
    if given["suite"] is None:
        return given
    from sb3_attention_ac.compare.suites import choose, read_suite

    folder = Path(given["suite"])
    default = vars(parse.parse_args([]))
    parse.set_defaults(**dict.fromkeys(default))
    chosen = {name: value for name, value in vars(parse.parse_args(arguments)).items() if value is not None}
    return {**default, "out": str(Path("runs", folder.resolve().name)), **choose(read_suite(folder), chosen)}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: Command line, None for that of the process
    :return: Exit code: 0 if all runs have finished, 1 if some failed, 2 if nothing could be reported
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows shall not end hours of training in an error
    try:
        given = _parse(arguments)
        suite = given.pop("suite")
        results = None if suite is None else Path(suite, "results.csv")
        protocol = Protocol(
            **{name: given.pop(name) for name in ("steps", "evaluations", "episodes", "device")},
            deterministic=not given.pop("stochastic"),
            gym_packages=tuple(given.pop("gym_packages")),
        )
        comparison = compare(**given, protocol=protocol, results=results)  # what is left has the names of its arguments
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in comparison.failures:
        print(f"failed: {failure}", file=sys.stderr)
    print((comparison.report.parent / "table.md").read_text(encoding="utf-8"))
    print(f"Report: {comparison.report}")
    if results is not None:
        print(f"Results: {results}")
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
