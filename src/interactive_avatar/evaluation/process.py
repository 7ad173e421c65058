# SPDX-License-Identifier: Apache-2.0
"""Runs the process that plays a user or a bag at the graph, and tells what it says."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_S = 10.0


def run_process(command: Sequence[str], environment: Mapping[str, str], log: Path,
               take: Callable[[str], None]) -> int:
    """Run it to its end, or end it gently if this process is interrupted.

    Args:
        command: with its arguments.
        environment: of the process.
        log: file that its standard error is appended to; its folder is made.
        take: called with each line of its standard output.

    Returns:
        Its exit status.

    Raises:
        OSError: if the command cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'ab') as errors:
        process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE,
                                   stderr=errors, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            take(line)
        return process.wait()
    finally:
        if process.poll() is None:
            # What it records must be finished to be readable, so it is asked first.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
