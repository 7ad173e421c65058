# SPDX-License-Identifier: Apache-2.0
"""``avatar bench image-topic``: pictures between two processes, with and without the profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.graph import PROFILE_VARIABLES, prepare_environment

MODULE = 'interactive_avatar.nodes.bench_image_topic'
AIM_P50_MS = 5.0
START_S = 30.0


def measure(environment: dict[str, str], size: int, messages: int, rate_hz: float) -> list[float]:
    """Delays in milliseconds of the pictures that arrived.

    Raises:
        RuntimeError: if the taking process failed.
    """
    topic = f'bench_image_{os.getpid()}'
    base = [sys.executable, '-m', MODULE]
    options = ['--topic', topic, '--size', str(size), '--messages', str(messages),
               '--rate', str(rate_hz)]
    limit_s = START_S + messages / rate_hz + 10.0
    taker = subprocess.Popen([*base, 'take', *options], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        subprocess.run([*base, 'publish', *options], env=environment, check=True, text=True,
                       capture_output=True, timeout=limit_s)
        out, errors = taker.communicate(timeout=limit_s)
    except subprocess.SubprocessError as error:
        text = getattr(error, 'stderr', '') or error
        raise RuntimeError(f'the publishing process failed: {text}') from error
    finally:
        if taker.poll() is None:
            taker.kill()
            taker.wait()
    if taker.returncode:
        raise RuntimeError(f'the taking process failed: {errors.strip()[-500:]}; run `make`')
    delays: list[float] = json.loads(out.splitlines()[-1])['delays_ms']
    return delays


def run(size: int, messages: int, rate_hz: float) -> dict[str, Any]:
    """Measure with the shipped Fast DDS profile and with Fast DDS's defaults.

    Args:
        size: side of the pictures in pixels.
        messages: pictures per run.
        rate_hz: pictures per second.

    Returns:
        Figures, and the delays under ``plot``.
    """
    ours = dict(os.environ)
    for name in PROFILE_VARIABLES:
        ours.pop(name, None)
    default = dict(prepare_environment(dict(ours)))
    for name in PROFILE_VARIABLES:
        default.pop(name, None)
    delays = {'shipped profile': measure(dict(prepare_environment(dict(ours))), size, messages,
                                         rate_hz),
              'Fast DDS defaults': measure(default, size, messages, rate_hz)}
    result: dict[str, Any] = {
        'benchmark': 'image-topic', 'size': size, 'messages': messages, 'rate_hz': rate_hz,
        'aim_p50_ms': AIM_P50_MS,
        'runs': {name: {**metrics.percentiles(values), 'received': len(values)}
                 for name, values in delays.items()}}
    print(table(['publish to callback (ms)', 'p50', 'p95', 'p99', 'received'],
                [[name, *(number(row[p]) for p in ('p50', 'p95', 'p99')),
                  f'{row["received"]} of {messages}'] for name, row in result['runs'].items()]))
    result['plot'] = {name: values for name, values in delays.items() if values}
    return result
