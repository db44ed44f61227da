"""What :mod:`throughput` measures, and tables of it."""

import statistics
from operator import attrgetter
from typing import NamedTuple

import numpy as np


class Setup(NamedTuple):
    """
    What to measure.

    :param algo: One of ``throughput.ALGORITHMS``
    :param env: Environment ID
    :param n_envs: Number of environments
    :param n_steps: Steps of each environment in a rollout
    :param batch_size: Minibatch size
    :param n_epochs: Number of epochs
    :param device: PyTorch device
    :param threads: Number of PyTorch threads
    :param network: Network arguments of AttentionActorCritic, name and value (``d_model`` is RecurrentPPO's width too)
    :param bf16: Whether updates run under ``torch.autocast`` with bfloat16
    :param compiled: Whether the networks are compiled by ``torch.compile``
    :param aux_loss: AttentionActorCritic's self-supervised loss, or "none"
    :param packages: Packages to import, which register environments
    :param subproc: Whether every environment is in a process of its own
    """

    algo: str
    env: str
    n_envs: int
    n_steps: int
    batch_size: int
    n_epochs: int
    device: str
    threads: int
    network: tuple[tuple[str, int], ...] = ()
    bf16: bool = False
    compiled: bool = False
    aux_loss: str = "auto"
    packages: tuple[str, ...] = ()
    subproc: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether networks are not on the processor"""
        return self.device != "cpu"

    @property
    def by_clock(self) -> bool:
        """Whether other processors than the process's own do part of the work, so that its processor time tells little"""
        return self.on_gpu or self.subproc

    @property
    def peak_column(self) -> str:
        """What ``Measurement.peak_mib`` is called in tables"""
        return "peak GPU MiB" if self.on_gpu else "peak MiB"


class Measurement(NamedTuple):
    """
    One repetition. Where ``Setup.by_clock``, processor time is time by the clock.

    :param steps: Number of steps, over all environments
    :param seconds: Time they took by the clock
    :param cpu_seconds: Processor time they took
    :param training_cpu_seconds: Processor time of the updates among it
    :param env_cpu_seconds: Processor time of the environments among it
    :param peak_mib: The most memory the process has used so far, of the GPU if there is one
    """

    steps: int
    seconds: float
    cpu_seconds: float
    training_cpu_seconds: float
    env_cpu_seconds: float
    peak_mib: float


class Result(NamedTuple):
    """
    Medians of all repetitions. Where ``Setup.by_clock``, processor time is time by the clock.

    :param setup: What was measured
    :param whole: Steps per second by the clock
    :param spread: Lowest and highest of the repetitions
    :param cpu: Steps per second of processor time
    :param collecting: Steps per second of processor time, collecting alone
    :param training: Steps per second of processor time, the updates alone; infinite if there are none
    :param env_share: The environments' share of collecting
    :param peak_mib: The most memory the process has used
    """

    setup: Setup
    whole: float
    spread: tuple[float, float]
    cpu: float
    collecting: float
    training: float
    env_share: float
    peak_mib: float


def summarize(setup: Setup, measurements: list[Measurement]) -> Result:
    """
    :param setup: What was measured
    :param measurements: Its repetitions
    :return: Their medians
    """
    rates = [m.steps / m.seconds for m in measurements]
    training = [m.training_cpu_seconds for m in measurements]
    return Result(
        setup,
        statistics.median(rates),
        (min(rates), max(rates)),
        statistics.median(m.steps / m.cpu_seconds for m in measurements),
        statistics.median(m.steps / (m.cpu_seconds - m.training_cpu_seconds) for m in measurements),
        statistics.median(m.steps / m.training_cpu_seconds for m in measurements) if all(training) else float("inf"),
        statistics.median(m.env_cpu_seconds / (m.cpu_seconds - m.training_cpu_seconds) for m in measurements),
        max(m.peak_mib for m in measurements),
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """
    :param header: Names of the columns
    :param rows: Cells
    :return: A Markdown table
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def comparison_table(results: list[Result]) -> str:
    """
    :param results: Results on one environment
    :return: Steps per second, their ratio to PPO's, and peak memory
    """
    ppo = next((result for result in results if result.setup.algo == "ppo"), None)
    setup = results[0].setup
    by_clock = setup.by_clock
    second = attrgetter("training" if by_clock else "cpu")  # by the clock a whole repetition is in the first column
    rows = []
    for result in results:
        whole, apart, collecting = (
            [_number(rate(result), 0), _number(rate(result) / rate(ppo), 2) if ppo is not None else "-"]
            for rate in (attrgetter("whole"), second, attrgetter("collecting"))
        )
        whole.insert(1, "{:.0f} to {:.0f}".format(*result.spread))
        rows.append([result.setup.algo, *whole, *apart, *collecting, f"{result.env_share:.0%}", f"{result.peak_mib:.0f}"])
    columns = ["training steps/s", "collecting steps/s"] if by_clock else ["CPU steps/s", "CPU collecting steps/s"]
    rates = [column for name in columns for column in (name, "x PPO")]
    return table(["algorithm", "steps/s", "range", "x PPO", *rates, "of it environments", setup.peak_column], rows)


def growth_exponent(sizes: list[int], costs: list[float]) -> float:
    """
    :param sizes: Values of a setting
    :param costs: What a step costs with each
    :return: The slope of log cost over log size by least squares: cost grows like size to this power
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def sweep_table(name: str, sizes: list[int], results: list[Result]) -> str:
    """
    :param name: The setting that is changed
    :param sizes: Its values
    :param results: The result of each
    :return: Microseconds per step for each value (of processor time, or by the clock), and below the exponents of their growth
    """
    setup = results[0].setup
    unit = "us/step" if setup.by_clock else "CPU us/step"
    costs = [[1e6 / rate for rate in (r.cpu, r.collecting, r.training)] for r in results]
    rows = [
        [str(size), *(f"{cost:.0f}" for cost in row), f"{result.peak_mib:.0f}"]
        for size, row, result in zip(sizes, costs, results, strict=True)
    ]
    if len(sizes) > 1 and min(sizes) > 0:  # nothing grows from 0 by a power
        exponents = [growth_exponent(sizes, list(column)) for column in zip(*costs, strict=True)]
        rows.append(["exponent", *(f"{exponent:.2f}" for exponent in exponents), "-"])
    return table([name, unit, "collecting", "training", setup.peak_column], rows)
