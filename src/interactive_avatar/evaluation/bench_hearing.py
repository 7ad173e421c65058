# SPDX-License-Identifier: Apache-2.0
"""``avatar bench hearing``: how well a model's audio encoder hears a mouth, of voices that it was
never trained on.

The encoder has a head that reads mouth units off its tokens. What it does not hear no denoiser can
draw, so these correlations bound those of ``avatar bench lips`` and of the recordings in ``avatar
evaluate model`` from above; they need no pictures, and take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bench_lips import pooled
from interactive_avatar.evaluation.held_out import SHIPPED_SET, load_set
from interactive_avatar.evaluation.model import recorded
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.media.clock import CHUNK_SAMPLES, FRAMES_PER_CHUNK
from interactive_avatar.media.mel import MEL_FLOOR_LN, log_mel

if TYPE_CHECKING:
    from interactive_avatar.generator.audio import AudioEncoder

RESAMPLED: Final = '*'
"""In the name of a voice: a copy of another one at another pitch."""


@dataclass(frozen=True)
class Options:
    """What to measure: folders of models, a held-out set, and a speech library, of which the test
    voices are heard too if it is there."""

    models: tuple[Path, ...]
    heldout: Path = SHIPPED_SET
    speech: Path = Path('assets/speech/speech.npz')


def heard_opening(model: AudioEncoder, samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Opening of the mouth that an encoder hears in a sound.

    Args:
        model: on the CPU.
        samples: int16 [n], 16 kHz; what is missing to a whole chunk is silence.

    Returns:
        float32 [4 · chunks], 25 per second; see `training.performances.mouth.mouth_opening`.

    Raises:
        ValueError: without samples.
    """
    import torch

    from interactive_avatar.training.data import MOUTH_UNITS
    from interactive_avatar.training.performances.mouth import mouth_opening
    from interactive_avatar.training.speech.library import MEL_FRAMES_PER_FRAME
    from interactive_avatar.training.units import UNITS

    if not samples.size:
        raise ValueError('got no samples: give some sound')
    a = model.config
    chunks = -(-samples.size // CHUNK_SAMPLES)
    mel = log_mel(np.pad(samples, (0, chunks * CHUNK_SAMPLES - samples.size)))
    hop = MEL_FRAMES_PER_FRAME
    mel = np.pad(mel, ((a.past_frames * hop, a.ahead_frames * hop), (0, 0)),
                 constant_values=MEL_FLOOR_LN)
    first = np.arange(chunks) * FRAMES_PER_CHUNK * hop
    windows = torch.from_numpy(mel[first[:, None] + np.arange(a.window_mels)])
    with torch.no_grad():
        units = model.mouth(model(windows)).float().flatten(0, 1).numpy()
    whole = np.zeros((len(units), len(UNITS)), np.float32)
    whole[:, [UNITS.index(name) for name in MOUTH_UNITS]] = np.clip(units, 0.0, 1.0)
    return mouth_opening(whole)


def together(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    """Correlation of heard with true openings, each standardised, all in one; NaN without any."""
    if not pairs:
        return float('nan')
    whole = [(heard[:true.size].astype(np.float64), true[:heard.size].astype(np.float64))
             for heard, true in pairs]
    return metrics.lip_fit(pooled([heard for heard, _ in whole]),
                           pooled([true for _, true in whole])).correlation


def _recordings() -> list[tuple[NDArray[np.int16], NDArray[np.float32]]]:
    """Recorded people and what their phones ask for; none where the packages are missing."""
    try:
        from interactive_avatar.training.speech.align import Aligner
        aligner = Aligner()
    except ModuleNotFoundError:
        return []
    found = []
    for clip in recorded.human():
        asked = recorded.openness(clip, aligner)
        if asked is not None:
            found.append((recorded.levelled(clip.samples), asked))
    return found


def _voices(model: AudioEncoder, path: Path) -> Mapping[str, float]:
    """Correlations of the jaw by test voice of a speech library, if there is one."""
    if not path.is_file():
        return {}
    import torch

    from interactive_avatar.training.hearing import Windows, by_voice, heard_jaw
    from interactive_avatar.training.speech.library import SpeechLibrary

    windows = Windows(SpeechLibrary.load(path), model.config, torch.device('cpu'), 'test')
    return {voice: value for voice, value in by_voice(heard_jaw(model, windows),
                                                      windows).items() if RESAMPLED not in voice}


def run(options: Options) -> dict[str, Any]:
    """Measure.

    Returns:
        By model: ``held_out`` and ``recorded``, each standardised and all in one, ``by_person``
        and ``by_voice``.

    Raises:
        FileNotFoundError: without a model or held-out set.
    """
    from interactive_avatar.generator.model import WEIGHTS_NAME, ModelFiles
    from interactive_avatar.generator.networks import Generator

    items, recordings = load_set(options.heldout), _recordings()
    found: dict[str, dict[str, Any]] = {}
    for folder in options.models:
        generator = Generator(ModelFiles.open(folder).config)
        generator.load(folder / WEIGHTS_NAME)
        model = generator.audio.eval()
        pairs = {item.name: (heard_opening(model, item.audio), item.mouth_open)
                 for item in items}
        found[str(folder)] = {
            'held_out': together(list(pairs.values())),
            'recorded': together([(heard_opening(model, sound), asked)
                                  for sound, asked in recordings]),
            'by_person': {name: together([pair]) for name, pair in pairs.items()},
            'by_voice': _voices(model, options.speech)}
    print(table(['model', f'{len(items)} held-out performances, true opening',
                 f'{len(recordings)} recordings of people, phone openness'],
                [[name, number(row['held_out']), number(row['recorded'])]
                 for name, row in found.items()]))
    if not recordings:
        print(f'No recordings: {recorded.INSTALL}; pip install pocketsphinx==5.1.1')
    voices = sorted({voice for row in found.values() for voice in row['by_voice']})
    if voices:
        print(table(['jaw of test voices and sentences', *found],
                    [[voice, *(number(row['by_voice'].get(voice, float('nan')))
                               for row in found.values())] for voice in voices]))
    else:
        print(f'No test voices: {str(options.speech)!r} is not there; make it with "python -m '
              f'interactive_avatar.training.speech.build"')
    return {'benchmark': 'hearing', 'models': found}
