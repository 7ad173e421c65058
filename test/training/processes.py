# SPDX-License-Identifier: Apache-2.0
"""Two processes under torchrun, for the tests that ask whether they are as one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

ABORTED = re.compile(r'exitcode\s*: -(6|11)\b')


def run_two(*arguments: str, timeout_s: float = 300.0) -> None:
    """Run a script (or ``-m module``) in two processes; fails with all they wrote to stderr.

    PyTorch's gloo threads end a process on SIGABRT or SIGSEGV now and then: once in some 400 runs
    of these tests, nowhere in Python (pytorch/pytorch#179291 describes one way). So a run that
    such a signal ended is tried once more, and what faulthandler saw is shown as a warning; any
    error of Python's is a failure at once.
    """
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2',
               *arguments]
    for attempt in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=timeout_s, env={**os.environ, 'PYTHONFAULTHANDLER': '1'})
        if done.returncode == 0:
            return
        if attempt == 0 and ABORTED.search(done.stderr):
            warnings.warn(f'a process was aborted, trying again:\n{done.stderr}', stacklevel=2)
            continue
        raise AssertionError(f'{" ".join(command)} ended with {done.returncode}:\n{done.stderr}')
