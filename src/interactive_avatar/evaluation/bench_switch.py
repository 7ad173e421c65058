# SPDX-License-Identifier: Apache-2.0
"""``avatar bench switch``: Cache-Switching against `recache`, in one run.

A stream is brought to the moment of a switch and goes on from there three times with the same
noise and the same sound: unswitched (the twin), switched, and switched with the window's keys and
values rebuilt under the new prompt. What differs from the twin is the switch's doing: nobody
blinks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.generator import AvatarStream
from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.base import ChunkJob
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.prompts import WorldState, action_prompt, stable_prompt
from interactive_avatar.generator.recache import Recacher
from interactive_avatar.generator.stream import reference_picture
from interactive_avatar.generator.text import TextEncoder
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES, FRAMES_PER_CHUNK
from interactive_avatar.media.picture import contact_sheet, write_image

Clip = NDArray[np.uint8]
WAYS: Final = ('unswitched', 'cache switch', 'recache')
# Cells of the picture that are compared, pixels: what is smaller is noise of the texture.
CELL_PX: Final = 8
# A just noticeable difference of colour (CIE76), and the share of the picture that shows it.
NOTICEABLE_DELTA_E: Final = 2.3
VISIBLE_SHARE: Final = 0.01
SHOWN_FRAMES: Final = 8
CELL_SIDE_PX: Final = 144


@dataclass(frozen=True)
class Scene:
    """A switch: its name, and the prompts before and after it."""

    name: str
    before: str
    after: str


def scenes() -> tuple[Scene, ...]:
    """Switches that a dialogue makes: from rest to actions, to talking, and back to rest."""
    world = WorldState()
    rest = stable_prompt(world)
    named = [('smile', action_prompt('smile', world)), ('nod', action_prompt('nod', world)),
             ('look left', action_prompt('look', world, direction='left')),
             ('raise eyebrows', action_prompt('raise_eyebrows', world)),
             ('tilt head', action_prompt('tilt_head', world)),
             ('talk', action_prompt('talk', world))]
    return (*(Scene(name, rest, prompt) for name, prompt in named),
            Scene('rest, after a smile', action_prompt('smile', world), rest))


class CountingBackend:
    """A backend that counts forwards of the denoiser and encodings of prompts.

    Args:
        inner: the backend that does the work.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.forwards = self.texts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def chunks(self, jobs: Sequence[ChunkJob]) -> Any:
        """See `Backend.chunks`: each chunk takes the sampler's steps and a commit."""
        self.forwards += len(jobs) * (len(self._inner.config.sampler.levels) + 1)
        return self._inner.chunks(jobs)

    def encode_text(self, tokens: NDArray[np.float32]) -> Any:
        """See `Backend.encode_text`."""
        self.texts += 1
        return self._inner.encode_text(tokens)

    def run_graph(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """See `Backend.run_graph`."""
        self.forwards += name == 'denoise'
        return self._inner.run_graph(name, inputs)


def noticed_share(frames: Clip, others: Clip) -> NDArray[np.float64]:
    """Share of each picture that differs noticeably from another's.

    Args:
        frames, others: uint8 [n, H, W, 3].

    Returns:
        float64 [n], 0 to 1: share of cells of 8×8 pixels whose mean colours are more than
        2.3 apart (CIE76).
    """
    def cells(clip: Clip) -> NDArray[np.float64]:
        n, height, width, _ = clip.shape
        rows, columns = height // CELL_PX, width // CELL_PX
        cut = clip[:, :rows * CELL_PX, :columns * CELL_PX].astype(np.float64)
        means = cut.reshape(n, rows, CELL_PX, columns, CELL_PX, 3).mean(axis=(2, 4))
        return metrics.srgb_to_lab(means)

    distance = np.linalg.norm(cells(frames) - cells(others), axis=-1)
    return np.asarray((distance > NOTICEABLE_DELTA_E).mean(axis=(1, 2)))


def first_visible(share: NDArray[np.float64]) -> int | None:
    """Index of the first frame that is visibly another; None if none is."""
    seen = np.flatnonzero(share >= VISIBLE_SHARE)
    return int(seen[0]) if seen.size else None


def play(stream: AvatarStream, blocks: Sequence[NDArray[np.int16]]) -> tuple[Clip, float]:
    """Frames uint8 [4 · blocks, H, W, 3] of the sound, and the median time of a chunk in ms."""
    frames, times = [], []
    for block in blocks:
        begun_s = time.perf_counter()
        frames.append(stream.step(block).frames)
        times.append(1000 * (time.perf_counter() - begun_s))
    return np.concatenate(frames), float(np.median(times))


def jump(before: NDArray[np.uint8], clip: Clip) -> float:
    """Mean change of grey levels from the last frame before the switch to the first after it."""
    return float(metrics.frame_change(np.stack([before, clip[0]]))[-1])


def measure(stream: AvatarStream, backend: CountingBackend, recacher: Recacher, scene: Scene,
            lead: Sequence[NDArray[np.int16]], follow: Sequence[NDArray[np.int16]]
            ) -> tuple[list[dict[str, Any]], dict[str, Clip]]:
    """One switch, three ways.

    Args:
        stream: an open stream on ``backend``.
        backend: counts.
        recacher: of the same stream.
        scene: what is switched.
        lead: sound before the switch, int16 [2560] each.
        follow: sound after it.

    Returns:
        A row for each way, and the frames: by way uint8 [n, H, W, 3], and ``before`` [1, H, W, 3].
    """
    stream.switch(scene.before)
    before, _ = play(stream, lead)
    start = stream.snapshot()
    # Announced, as the reasoning module does ahead of need.
    recacher.prepare(scene.after)
    rows: list[dict[str, Any]] = []
    clips: dict[str, Clip] = {'before': before[-1:]}
    for way in WAYS:
        stream.restore(start)
        forwards, texts = backend.forwards, backend.texts
        begun_s = time.perf_counter()
        forward_s = 0.0
        if way == 'cache switch':
            stream.switch(scene.after)
        elif way == 'recache':
            forward_s = recacher.switch(scene.after).forward_s
        switch_ms = 1000 * (time.perf_counter() - begun_s)
        row: dict[str, Any] = {
            'scene': scene.name, 'way': way, 'switch_ms': switch_ms,
            'networks_ms': 1000 * forward_s, 'forwards': backend.forwards - forwards,
            'texts_encoded': backend.texts - texts}
        clips[way], row['chunk_ms'] = play(stream, follow)
        share = noticed_share(clips[way], clips['unswitched'])
        seen = first_visible(share)
        row |= {'visible_frame': seen,
                'visible_chunks': None if seen is None else seen // FRAMES_PER_CHUNK + 1,
                'changed_share_first_chunk': float(share[:FRAMES_PER_CHUNK].max()),
                'changed_share_after_1_s': float(share[min(len(share) - 1, 24)]),
                'jump_grey': jump(before[-1], clips[way])}
        rows.append(row)
    return rows, clips


def sheet(scene: Scene, clips: Mapping[str, Clip]) -> NDArray[np.uint8]:
    """Side by side: a row for each way, the frame before the switch and those after it."""
    frames, labels = [], []
    for way in WAYS:
        frames += [clips['before'][0], *clips[way][:SHOWN_FRAMES]]
        labels += ['before', *(f'{way} +{number}' for number in range(1, SHOWN_FRAMES + 1))]
    return contact_sheet(frames, labels, columns=SHOWN_FRAMES + 1, cell_px=CELL_SIDE_PX,
                         title=f'{scene.name}: the last frame before the switch and the '
                               f'{SHOWN_FRAMES} after it')


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures of each way over all scenes."""
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        own = [row for row in rows if row['way'] == way]
        seen = [row['visible_chunks'] for row in own if row['visible_chunks'] is not None]
        found[way] = {
            'switches': len(own),
            'switch_ms': metrics.percentiles([row['switch_ms'] for row in own], (50, 95)),
            'networks_ms_p50': float(np.median([row['networks_ms'] for row in own])),
            'forwards': max(row['forwards'] for row in own),
            'chunk_ms_p50': float(np.median([row['chunk_ms'] for row in own])),
            'visible': len(seen),
            'visible_chunks_p50': float(np.median(seen)) if seen else None,
            'visible_chunks_worst': max(seen, default=None),
            'jump_grey_mean': float(np.mean([row['jump_grey'] for row in own])),
            'changed_share_first_chunk': float(np.mean(
                [row['changed_share_first_chunk'] for row in own]))}
    return found


def run(model: Path, backend_name: str, options: Mapping[str, Any],
        reference: NDArray[np.uint8] | str | None, seed: int, out: Path,
        speech: Sequence[NDArray[np.int16]], lead_chunks: int = 12, follow_chunks: int = 10,
        chosen: Sequence[Scene] = ()) -> dict[str, Any]:
    """Carry the benchmark out.

    Args:
        model: folder of the model.
        backend_name: what runs it; options: of that backend.
        reference: who the avatar is, as `AvatarStream.open` takes it.
        seed: of the sampler's noise.
        out: folder for the pictures.
        speech: sound of the scene ``talk``, int16 [2560] each; the others are silent.
        lead_chunks, follow_chunks: before and after each switch.
        chosen: scenes; those of `scenes` if empty.

    Returns:
        Figures; ``pictures`` names the files written.

    Raises:
        ModelError: if the model or the backend cannot be used.
        ValueError: if the reference is unusable.
    """
    files = ModelFiles.open(model)
    backend = CountingBackend(open_backend(backend_name, files, **options))
    encode = TextEncoder.load().encode
    picked = tuple(chosen) or scenes()
    stream = AvatarStream(backend, reference_picture(files, files.config, reference),
                          picked[0].before, encode, seed, blinks=False)
    recacher = Recacher(stream, encode)
    silence = [np.zeros(CHUNK_SAMPLES, np.int16)] * (lead_chunks + follow_chunks)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    pictures = []
    for scene in picked:
        sound = [*silence[:lead_chunks], *speech[:follow_chunks]] if scene.name == 'talk' \
            else silence
        found, clips = measure(stream, backend, recacher, scene, sound[:lead_chunks],
                               sound[lead_chunks:])
        rows += found
        path = out / f'switch_{scene.name.replace(", ", "_").replace(" ", "_")}.png'
        write_image(path, sheet(scene, clips))
        pictures.append(str(path))
    # A prompt that nobody announced: its text is encoded at the switch.
    begun_s = time.perf_counter()
    stream.switch('A person who frowns at a letter that nobody announced.')
    unannounced_ms = 1000 * (time.perf_counter() - begun_s)
    result: dict[str, Any] = {
        'benchmark': 'switch', 'model': str(model), 'backend': backend_name, 'seed': seed,
        'ways': summary(rows), 'unannounced_switch_ms': unannounced_ms, 'scenes': rows,
        'visible_if': {'delta_e': NOTICEABLE_DELTA_E, 'share': VISIBLE_SHARE,
                       'cell_px': CELL_PX}, 'pictures': pictures}
    print(describe(result))
    return result


def describe(result: Mapping[str, Any]) -> str:
    """The result as two small tables."""
    ways = result['ways']
    rows = [[way, f'{number(w["switch_ms"]["p50"], "", 2)} / '
                  f'{number(w["switch_ms"]["p95"], "ms", 2)}', str(w['forwards']),
             number(w['chunk_ms_p50'], 'ms', 0),
             '–' if way == WAYS[0] else f'{w["visible"]} of {w["switches"]}: '
             f'{number(w["visible_chunks_p50"], "", 1)} / {number(w["visible_chunks_worst"])}',
             number(100 * w['changed_share_first_chunk'], '%', 1),
             number(w['jump_grey_mean'], '', 2)] for way, w in ways.items()]
    head = ['way', 'switch p50 / p95', 'forwards', 'chunk after', 'visible after chunks, '
            'p50 / worst', 'changed in chunk 1', 'jump at the switch (grey)']
    scene_rows = []
    for name in dict.fromkeys(row['scene'] for row in result['scenes']):
        own = {row['way']: row for row in result['scenes'] if row['scene'] == name}
        scene_rows.append([name, *(
            'not within the run' if own[way]['visible_frame'] is None else
            f'chunk {own[way]["visible_chunks"]} (frame {own[way]["visible_frame"] + 1})'
            for way in WAYS[1:]), *(number(own[way]['jump_grey'], '', 2) for way in WAYS)])
    scene_head = ['switch to', *(f'visible, {way}' for way in WAYS[1:]),
                  *(f'jump, {way}' for way in WAYS)]
    return (f'{table(head, rows)}\n\n{table(scene_head, scene_rows)}\n'
            f'a prompt that was not announced takes '
            f'{number(result["unannounced_switch_ms"], "ms", 1)} more, once; a chunk lasts '
            f'{CHUNK_MS} ms')
