"""
Two algorithms after equal wall-clock time: the last return of the first, and where the other's learning curve stood after as
many seconds of training, with the same seed on the same environment (between two evaluations, the line between them).

    python benchmarks/equal_seconds.py aac ppo_lstm runs/failing_sensors --csv benchmarks/failing_sensors/equal_seconds.csv

Reads the runs' own files, as results.csv holds no curves: the comparison must have run on this machine.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_attention_ac.compare.storage import RESULT_FILE, Result, read_result


def equal_seconds(results: Iterable[Result], algorithm: str, other: str) -> pd.DataFrame:
    """:return: For each environment and seed of both: ``algorithm``'s seconds, both returns, and the other's seconds"""
    runs = {(result.job.variant, result.job.env, result.job.seed): result for result in results}
    rows = []
    for (variant, env, seed), run in sorted(runs.items()):
        beside = runs.get((other, env, seed))
        if variant == algorithm and beside is not None:
            curve = [(evaluation.seconds, evaluation.score) for evaluation in beside.evaluations]
            score = float(np.interp(run.train_seconds, *np.transpose(curve)))
            rows.append([env, seed, run.train_seconds, run.evaluations[-1].score, score, beside.train_seconds])
    return pd.DataFrame(rows, columns=["environment", "seed", "seconds", algorithm, other, f"seconds_{other}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm")
    parser.add_argument("other")
    parser.add_argument("folders", nargs="+", type=Path, help="Folders of comparisons (--out)")
    parser.add_argument("--csv", type=Path, help="Where to write the table")
    args = parser.parse_args()
    files = [path for folder in args.folders for path in sorted(folder.glob(f"runs/**/{RESULT_FILE}"))]
    table = equal_seconds(map(read_result, files), args.algorithm, args.other)
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.1f", lineterminator="\n")
    ratio = table[f"seconds_{args.other}"] / table["seconds"]
    ahead = int((table[args.algorithm] > table[args.other]).sum())
    print(f"{args.algorithm} is ahead of {args.other} in {ahead} of {len(table)} pairs of runs after equal time.")
    print(f"{args.other} took {ratio.median():.1f} times as long (median; {ratio.min():.1f} to {ratio.max():.1f}).")


if __name__ == "__main__":
    main()
