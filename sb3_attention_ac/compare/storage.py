"""Results on disk: one file per run, written at once or not at all, and checked when read."""

import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sb3_attention_ac.compare.errors import CorruptResultError
from sb3_attention_ac.compare.settings import Job

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Evaluation:
    """
    :param point: Number of the evaluation, 0 is the untrained policy
    :param steps: Training steps done
    :param seconds: Seconds of training so far, evaluations excluded
    :param returns: Undiscounted return of each episode, before any normalization
    :param lengths: Length of each episode in steps, 0 where the run diverged before it
    :param training: Mean return of the training episodes that ended since the evaluation before, None if none did
    """

    point: int
    steps: int
    seconds: float
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    training: float | None = None

    @property
    def score(self) -> float:
        """Mean return, NaN if a return is not finite."""
        return fmean(self.returns) if all(map(math.isfinite, self.returns)) else math.nan


@dataclass(frozen=True)
class Result:
    """
    :param job: What was run
    :param evaluations: All evaluations, the last one is the final one
    :param steps: Training steps done; full rollouts may exceed the steps asked for
    :param train_seconds: Wall-clock seconds of training, evaluations excluded
    :param evaluation_seconds: Wall-clock seconds of the evaluations
    :param n_parameters: Number of trainable parameters
    :param arguments: Every argument of the algorithm's constructor, its defaults included, as text
    :param provenance: Versions, hardware, revision, command, time
    """

    job: Job
    evaluations: tuple[Evaluation, ...]
    steps: int
    train_seconds: float
    evaluation_seconds: float
    n_parameters: int
    arguments: dict[str, str]
    provenance: dict[str, Any]

    @property
    def diverged(self) -> bool:
        """Whether the run ended in returns that are not finite."""
        return math.isnan(self.evaluations[-1].score)


def write_atomically(path: Path, content: str | bytes) -> None:
    """
    Write a file so that it is there in full or not at all, whenever the process or machine stops.

    :param path: File to write, replaced if it exists; missing folders are made
    :param content: What to write
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _checksum(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def to_text(result: Result) -> str:
    """
    :param result: Result of a run
    :return: Content of its file
    """
    values = json.loads(json.dumps({**asdict(result), "job": result.job.to_dict()}))
    return json.dumps({"sha256": _checksum(values), "result": values}, indent=1)


def read_result(path: Path) -> Result:
    """
    :param path: File of a result
    :return: The result
    :raises CorruptResultError: If the file is not exactly what was written
    """
    try:
        content = json.loads(path.read_bytes())
        values, expected = content["result"], content["sha256"]
        if _checksum(values) != expected:
            raise ValueError("its checksum does not match")
        result = _from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptResultError(f"{path} is corrupt ({type(error).__name__}: {error})") from error
    return result


def _from_dict(values: dict[str, Any]) -> Result:
    evaluations = tuple(
        Evaluation(**{**entry, "returns": tuple(entry["returns"]), "lengths": tuple(entry["lengths"])})
        for entry in values["evaluations"]
    )
    return Result(**{**values, "job": Job.from_dict(values["job"]), "evaluations": evaluations})
