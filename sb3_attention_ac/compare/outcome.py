"""What comes of a run, and of a comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_attention_ac.compare.settings import Job

if TYPE_CHECKING:  # the processes of the runs import this package too, and are spared it
    import pandas as pd


@dataclass(frozen=True)
class Outcome:
    """
    :param job: What was run
    :param result: Content of the result file, None if the run failed
    :param failure: Why the run failed, None if it did not
    """

    job: Job
    result: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Comparison:
    """
    :param runs: One row per finished run, see :func:`~sb3_attention_ac.compare.tables.run_table`
    :param evaluations: One row per evaluation, see :func:`~sb3_attention_ac.compare.tables.evaluation_table`
    :param summaries: Summaries over environments, see :func:`~sb3_attention_ac.compare.statistics.summaries`
    :param improvements: Pairs of algorithms, see :func:`~sb3_attention_ac.compare.statistics.improvements`
    :param failures: Runs that failed and why
    :param report: Path of the HTML report
    """

    runs: "pd.DataFrame"
    evaluations: "pd.DataFrame"
    summaries: "pd.DataFrame"
    improvements: "pd.DataFrame"
    failures: tuple[str, ...]
    report: Path
