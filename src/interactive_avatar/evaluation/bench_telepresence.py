# SPDX-License-Identifier: Apache-2.0
"""``avatar bench telepresence``: from an operator's microphone to the face.

Recorded sentences are played as the operator's microphone at a graph in telepresence. The avatar's
sound is the operator's, so each chunk of it is found again in what the microphone took; its first
frame has the chunk's stamp.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bag import NS_PER_S, Recording, read_bag
from interactive_avatar.evaluation.conversation import place_sound
from interactive_avatar.evaluation.demo import UTTERANCES, DemoError, run_client
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.graph import start_graph
from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from interactive_avatar.run import mode_overrides

NAMESPACE: Final = 'avatar_bench'
NODES: Final = ('reasoning', 'generator')
P95_AIM_MS: Final = 400.0
# As the page's microphone sends, and sound cards do.
BLOCK_MS: Final = 20
# A chunk must hold this level of speech to be found again, and be found this surely.
LEAST_LEVEL: Final = 300.0
LEAST_LIKENESS: Final = 0.9
LONGEST_S: Final = 3.0


def delays_ms(recording: Recording) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """How late each chunk of the avatar's sound is after the microphone took it.

    Args:
        recording: a session in telepresence.

    Returns:
        Delays until the chunk can be presented (at its stamp, or when the later of its sound and
        its first picture has come, if that is after it) and until both have come, float64 [n]
        each in milliseconds, and how many loud chunks could not be found.
    """
    pictures = {picture.stamp_ns: picture.arrival_ns for picture in recording.pictures}
    t0_ns = min(sound.stamp_ns for sound in recording.user_audio)
    end_ns = max(sound.stamp_ns for sound in recording.audio) + NS_PER_S
    line = place_sound(recording.user_audio, t0_ns, (end_ns - t0_ns) * SAMPLE_RATE_HZ // NS_PER_S)
    presented, published, lost = [], [], 0
    for sound in recording.audio:
        samples = sound.samples.astype(np.float64)
        if not sound.turn_id or samples.size != CHUNK_SAMPLES or \
                np.sqrt((samples ** 2).mean()) < LEAST_LEVEL:
            continue
        at = (sound.stamp_ns - t0_ns) * SAMPLE_RATE_HZ // NS_PER_S
        start = max(0, at - int(LONGEST_S * SAMPLE_RATE_HZ))
        before = line[start:at + CHUNK_SAMPLES].astype(np.float64)
        if before.size <= CHUNK_SAMPLES:
            continue
        size = 1 << int(np.ceil(np.log2(before.size + CHUNK_SAMPLES)))
        product = np.fft.irfft(np.fft.rfft(before, size) * np.conj(np.fft.rfft(samples, size)),
                               size)[:before.size - CHUNK_SAMPLES + 1]
        power = np.concatenate([[0.0], np.cumsum(before ** 2)])
        energy = power[CHUNK_SAMPLES:] - power[:-CHUNK_SAMPLES]
        likeness = product / np.sqrt(np.maximum(energy * (samples @ samples), 1.0))
        best = int(np.argmax(likeness))
        if likeness[best] < LEAST_LIKENESS:
            lost += 1
            continue
        taken_ns = t0_ns + (start + best) * NS_PER_S // SAMPLE_RATE_HZ
        sent_ns = max(sound.arrival_ns, pictures.get(sound.stamp_ns, 0))
        presented.append((max(sound.stamp_ns, sent_ns) - taken_ns) / 1e6)
        published.append((sent_ns - taken_ns) / 1e6)
    return np.asarray(presented), np.asarray(published), lost


def run(out: Path, config: str, overrides: dict[str, Any],
        say: Callable[[str], None] = print) -> dict[str, Any]:
    """Carry the benchmark out.

    Raises:
        DemoError: if the operator could not speak.
        GraphError: if a node failed.
    """
    for name in ('bag', 'said.json'):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with start_graph(config, nodes=NODES, namespace=NAMESPACE,
                     overrides={**mode_overrides('telepresence', NODES), **overrides},
                     log_folder=out / 'logs', tell=say) as graph:
        graph.wait_until_active(180.0, say)
        # Nobody answers an operator; each sentence follows the one before.
        status = run_client(out, graph.environment, NAMESPACE, 180.0, say, UTTERANCES,
                            pause_s=1.0, answer_timeout_s=0.5, block_ms=BLOCK_MS)
    if status or not (out / 'bag').exists():
        raise DemoError(f'the operator ended with status {status}; see '
                        f'{out / "logs" / "demo_client.log"}')
    recording = read_bag(out / 'bag', NAMESPACE)
    presented, published, lost = delays_ms(recording)
    if not presented.size:
        raise DemoError(f"none of the avatar's sound is the operator's: see {out / 'logs'}")
    face, sent = (metrics.percentiles(values, (50, 95)) for values in (presented, published))
    result: dict[str, Any] = {
        'benchmark': 'telepresence', 'chunks': int(presented.size), 'not_found': lost,
        'to_face_ms': face, 'to_published_ms': sent, 'aim_p95_ms': P95_AIM_MS}
    print(table(['from the microphone', 'p50', 'p95', ''], [
        ['to the picture on image_raw, with its sound', number(face['p50'], 'ms', 0),
         number(face['p95'], 'ms', 0), f'aim {P95_AIM_MS:.0f} ms'],
        ['to the chunk as published', number(sent['p50'], 'ms', 0),
         number(sent['p95'], 'ms', 0), '']]))
    print(f'{presented.size} chunks, {lost} not found again')
    return result
