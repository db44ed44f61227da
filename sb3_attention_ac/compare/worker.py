"""
The process that runs jobs, one after the other: ``python -m sb3_attention_ac.compare.worker``.

It imports everything once, which can take longer than a short run, and starts every job from this same clean state: where
that is safe (Linux) in a copy of itself, elsewhere it ends after one job. One line of JSON per job comes in, one line with the
exit code goes out. When the other end of its input closes, because the comparison has ended or was killed, it ends at once,
and so do the jobs.
"""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from sb3_attention_ac.compare.launcher import FORKS


def main() -> None:
    """Serve until the input closes."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    # RL Zoo takes Ctrl-C for "training is over": the result would pass for a finished one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from sb3_attention_ac.compare.run import warm_up

    warm_up()
    while line := _read_line():
        code = _run_in_copy(line) if FORKS else _run(line)
        try:
            print(code, file=replies)
        except BrokenPipeError:
            return
        if not FORKS:
            return


def _read_line() -> bytes:
    """
    :return: One line of the input, empty at its end; unbuffered, because the copies of this process wait for the end too
    """
    line = b""
    while byte := os.read(0, 1):
        line += byte
        if byte == b"\n":
            return line
    return b""


def _run_in_copy(line: bytes) -> int:
    child = os.fork()
    if child == 0:
        os._exit(_run(line))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _run(line: bytes) -> int:
    """
    :param line: What :func:`~sb3_attention_ac.compare.launcher.launch` or
        :func:`~sb3_attention_ac.compare.launcher.check_worker` asks for, in JSON
    :return: 0, or 1 if it failed and its log says why
    """
    threading.Thread(target=_end_with_input, daemon=True).start()
    request = json.loads(line)
    os.dup2(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
    os.dup2(1, 2)
    try:
        _serve(request)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _serve(request: dict[str, Any]) -> None:
    from sb3_attention_ac.compare.names import check_environment, register_environments
    from sb3_attention_ac.compare.run import run
    from sb3_attention_ac.compare.settings import Job

    if "job" in request:
        run(Job.from_dict(request["job"]), Path(request["out"]), request["command"])
        return
    register_environments(request["gym_packages"])
    for env, hyperparams in request["environments"]:
        check_environment(env, hyperparams)


def _end_with_input() -> NoReturn:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
    os._exit(0)  # taking down all that was imported can last longer than a short run
