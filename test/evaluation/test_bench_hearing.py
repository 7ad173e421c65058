# SPDX-License-Identifier: Apache-2.0
"""How well an encoder hears: frames and windows fit, and a mouth that is heard is found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason="torch is not installed: pip install -e '.[train]'")

sys.path.insert(0, str(Path(__file__).parents[1] / 'training'))

from toy import TINY, trainee

from interactive_avatar.evaluation import bench_hearing
from interactive_avatar.evaluation.held_out import SHIPPED_SET, load_set
from interactive_avatar.evaluation.model import recorded
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.networks import Generator
from interactive_avatar.media.clock import CHUNK_SAMPLES
from interactive_avatar.paths import resource
from interactive_avatar.training.hearing import Windows
from interactive_avatar.training.speech.curves import MOUTH_UNITS
from interactive_avatar.training.speech.library import SpeechLibrary, Utterance


def test_a_sound_is_heard_as_windows_of_training_are() -> None:
    from interactive_avatar.media.mel import log_mel, mel_to_bytes

    rng = np.random.default_rng(0)
    sound = rng.integers(-3000, 3000, 3 * CHUNK_SAMPLES - 100).astype(np.int16)
    model = trainee().audio.eval()
    heard = bench_hearing.heard_opening(model, sound)
    assert heard.shape == (12,) and heard.dtype == np.float32
    mel = mel_to_bytes(log_mel(np.pad(sound, (0, 100))))
    windows = Windows(
        SpeechLibrary(mel, np.zeros((12, len(MOUTH_UNITS)), np.uint8), MOUTH_UNITS,
                      [Utterance(0, 'a', 'train', 'x', 0, 12, 0, 12)]), TINY.audio,
        torch.device('cpu'))
    with torch.no_grad():
        units = model.mouth(model(windows.whole(torch.tensor([0]))[0])).flatten(0, 1)
    assert np.corrcoef(units[:, 0].clamp(0, 1).numpy(), heard)[0, 1] > 0.9 or heard.std() == 0.0
    with pytest.raises(ValueError, match='no samples'):
        bench_hearing.heard_opening(model, sound[:0])


def test_voices_are_pooled_whatever_their_level_and_without_any_there_is_no_figure() -> None:
    true = np.abs(np.sin(np.arange(60) * 0.4)).astype(np.float32)
    other = np.abs(np.cos(np.arange(50) * 0.3)).astype(np.float32)
    assert bench_hearing.together([(2.0 * true, true), (0.1 * other, other)]) == pytest.approx(1.0)
    assert np.isnan(bench_hearing.together([]))
    quiet = np.array([0, 10, -20], np.int16)
    assert np.abs(recorded.levelled(quiet)).max() == round(recorded.PEAK)
    assert not recorded.levelled(np.zeros(4, np.int16)).any()


def test_the_released_model_hears_held_out_voices(tmp_path: Path) -> None:
    folder = Path(str(resource('models/compact')))
    generator = Generator(ModelFiles.open(folder).config)
    generator.load(folder / 'model.safetensors')
    item = load_set(SHIPPED_SET, 1)[0]
    heard = bench_hearing.heard_opening(generator.audio.eval(), item.audio)
    assert bench_hearing.together([(heard, item.mouth_open)]) > 0.9
    # Somebody else's sound says nothing about this mouth.
    assert bench_hearing.together([(heard, item.mouth_open[::-1].copy())]) < 0.5
