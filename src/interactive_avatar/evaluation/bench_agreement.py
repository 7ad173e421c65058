# SPDX-License-Identifier: Apache-2.0
"""``avatar bench agreement``: whether backends that make the same stream drift apart.

The first way to run the model is the reference. All make the same stream: the same noise, sound
and prompts, chunk by chunk. Rounding that fed on itself would show as a difference that grows from
one fifth of the run to the next. As a measure of what a difference means, the reference is also
played with other noise: an equally good stream of the same dialogue.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.report import number, table

PARTS: Final = 5
VARIANTS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    'onnx': {'int8': {'int8': True}, 'fp32': {'int8': False}},
    'torch': {name: {'precision': name} for name in ('fp32', 'fp16', 'bf16')},
    'tensorrt': {name: {'precision': name} for name in ('fp32', 'fp16', 'bf16')}}
OTHER_NOISE: Final = 'with other noise'


@dataclass(frozen=True)
class Way:
    """A way to run the model: a backend and a variant of `VARIANTS`, as in ``torch:fp16``.

    Raises:
        ValueError: if there is no such way.
    """

    backend: str
    variant: str

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS.get(self.backend, {}):
            known = ', '.join(f'{name}:{variant}' for name, variants in VARIANTS.items()
                              for variant in variants)
            raise ValueError(f'{self} is no way to run a model; give some of {known}')

    def __str__(self) -> str:
        return f'{self.backend}:{self.variant}'

    @classmethod
    def parse(cls, text: str) -> Way:
        """A way from its name."""
        backend, _, variant = text.strip().partition(':')
        return cls(backend, variant)

    @property
    def options(self) -> dict[str, Any]:
        """What the backend is told."""
        return dict(VARIANTS[self.backend][self.variant])


def difference(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Mean absolute difference of pictures uint8 [n, H, W, 3] in grey levels."""
    return float(np.abs(frames.astype(np.int16) - others).mean())


def play_all(streams: Mapping[str, Any], speech: Iterator[NDArray[np.int16]],
             prompts: Sequence[str], chunks: int, chunks_per_prompt: int,
             each: Callable[[int], None] = lambda index: None
             ) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Play streams side by side.

    Args:
        streams: by name, the reference first; all of the same model and picture.
        speech: the sound, int16 [2560] a time.
        prompts: taken in turns, each for ``chunks_per_prompt`` chunks.
        each: told every chunk's number once it is there.

    Returns:
        For every stream ``difference`` [chunks] from the reference in grey levels, and the
        pictures' own ``sharpness`` and ``lightness`` (CIELAB L*) [chunks].
    """
    found = {name: {key: np.zeros(chunks) for key in ('difference', 'sharpness', 'lightness')}
             for name in streams}
    for index in range(chunks):
        samples = next(speech)
        reference: NDArray[np.uint8] | None = None
        for name, stream in streams.items():
            if index % chunks_per_prompt == 0:
                stream.switch(prompts[index // chunks_per_prompt % len(prompts)])
            frames = stream.step(samples).frames
            reference = frames if reference is None else reference
            own = found[name]
            own['difference'][index] = difference(frames, reference)
            own['sharpness'][index] = metrics.sharpness(frames[-1:])[0]
            own['lightness'][index] = metrics.srgb_to_lab(
                frames[-1].mean(axis=(0, 1))[None])[0, 0]
        each(index)
    return found


def summary(found: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> dict[str, dict[str, Any]]:
    """For every stream the mean difference of each fifth of the run, the largest of a chunk, and
    how far the last fifth's sharpness and lightness lie from the reference's."""
    reference = next(iter(found.values()))
    result: dict[str, dict[str, Any]] = {}
    for name, own in found.items():
        fifths = [float(part.mean()) for part in np.array_split(own['difference'], PARTS)]
        last = -max(1, len(own['difference']) // PARTS)
        result[name] = {
            'mean': float(own['difference'].mean()), 'fifths': fifths,
            'largest_of_a_chunk': float(own['difference'].max()),
            **{f'last_fifth_{key}': float(own[key][last:].mean())
               for key in ('sharpness', 'lightness')},
            **{f'last_fifth_{key}_apart': float((own[key] - reference[key])[last:].mean())
               for key in ('sharpness', 'lightness')}}
    return result


def run(model: Path, ways: Sequence[Way], reference: NDArray[np.uint8] | str | None, seed: int,
        speech: Iterator[NDArray[np.int16]], prompts: Sequence[str], chunks: int,
        chunks_per_prompt: int) -> dict[str, Any]:
    """Carry the benchmark out.

    Args:
        model: folder of the model.
        ways: the reference first.
        reference: who the avatar is, as `AvatarStream.open` takes it.
        seed: of the sampler's noise.

    Returns:
        Figures by way; ``plot`` the differences of every chunk.

    Raises:
        ModelError: if the model or a backend cannot be used.
        ValueError: with fewer than two ways, or too few chunks to be told apart.
    """
    from interactive_avatar.generator import AvatarStream

    if len(set(ways)) < 2:
        raise ValueError('give two ways to run the model, or more, the reference first')
    if chunks < PARTS:
        raise ValueError(f'--chunks is {chunks}: give {PARTS} or more')
    streams = {str(way): AvatarStream.open(model, way.backend, reference, prompts[0], seed,
                                           **way.options) for way in ways}
    first = ways[0]
    streams[f'{first} {OTHER_NOISE}'] = AvatarStream.open(
        model, first.backend, reference, prompts[0], seed + 1, **first.options)
    started = told = time.monotonic()

    def each(index: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > 5.0 or index + 1 == chunks:
            told = now
            print(f'agreement: {index + 1} of {chunks}, {(now - started) / (index + 1):.2f} s '
                  f'each', file=sys.stderr, flush=True)

    found = play_all(streams, speech, prompts, chunks, chunks_per_prompt, each)
    for stream in streams.values():
        stream.backend.close()
    result = {'benchmark': 'agreement', 'model': str(model), 'reference': str(first),
              'chunks': chunks, 'seed': seed, 'ways': summary(found),
              'plot': {name: own['difference'] for name, own in found.items()
                       if name != str(first)}}
    print(describe(result))
    return result


def describe(result: Mapping[str, Any]) -> str:
    """The result as a table."""
    rows = [[name, *(number(value, '', 3) for value in own['fifths']),
             number(own['largest_of_a_chunk'], '', 2),
             f'{own["last_fifth_sharpness_apart"]:+.2f} of {own["last_fifth_sharpness"]:.0f}',
             f'{own["last_fifth_lightness_apart"]:+.3f}']
            for name, own in result['ways'].items() if name != result['reference']]
    head = [f'difference from {result["reference"]}, grey levels',
            *(f'fifth {part + 1}' for part in range(PARTS)), 'largest of a chunk',
            'sharpness, last fifth', 'L*, last fifth']
    return f'{table(head, rows)}\n{result["chunks"]} chunks'
