# SPDX-License-Identifier: Apache-2.0
"""Training of the scorer of in-domain sync: its parts, without the library."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed (extra "train")')
pytest.importorskip('safetensors', reason='safetensors is not installed (extra "train")')

from interactive_avatar.evaluation import metrics, sync, train_sync
from interactive_avatar.training.speech.curves import MOUTH_UNITS
from interactive_avatar.training.speech.library import SpeechLibrary, Utterance


def library(count: int = 12, length: int = 90) -> SpeechLibrary:
    """Jaws that open with the loudness of noise."""
    rng = np.random.default_rng(0)
    total = count * length
    loud = np.convolve(rng.uniform(0, 1, total + 4), np.ones(5) / 5, 'valid')
    loud = (loud - loud.min()) / np.ptp(loud)
    curves = np.zeros((total, len(MOUTH_UNITS)), np.uint8)
    curves[:, MOUTH_UNITS.index('jawOpen')] = 255 * loud
    mel = np.repeat(255 * loud, 4)[:, None] * np.ones(64)
    return SpeechLibrary(mel.astype(np.uint8), curves, MOUTH_UNITS, [
        Utterance(i, f'voice{i % 3}', 'test' if i % 3 == 2 else 'train', 'words', i * length,
                  length, 5, length - 5) for i in range(count)])


def test_the_towers_of_torch_and_numpy_agree() -> None:
    torch.manual_seed(1)
    towers = torch.nn.ModuleDict({name: train_sync.Tower(name) for name in sync.TOWERS})
    tensors = {name: value.float().numpy() for name, value in train_sync.numbers(towers).items()}
    scorer = sync.SyncScorer(tensors)
    gap = np.random.default_rng(2).uniform(size=40).astype(np.float32)
    scaled = torch.from_numpy(sync.scale_gap(gap))[None, None]
    with torch.no_grad():
        rows = towers['mouth'](scaled)[0].numpy()
    assert scorer.mouth(gap)[5:-5] == pytest.approx(rows, abs=5e-3)
    mel = np.random.default_rng(3).uniform(-10, 0, (160, 64)).astype(np.float32)
    with torch.no_grad():
        rows = towers['sound'](torch.from_numpy(sync.scale_mel(mel)).T[None])[0].numpy()
    assert scorer.sound_of_mel(mel)[5:-5] == pytest.approx(rows, abs=5e-3)


def test_contrast_by_hand() -> None:
    """Two moments at right angles: e / (e + 1) of each softmax falls to the right one."""
    rows = torch.eye(2)[None]
    loss = train_sync.contrast(rows, rows, torch.ones(1, 2, dtype=torch.bool), torch.ones(()))
    one = np.log(1.0 + np.exp(-1.0))
    assert float(loss) == pytest.approx(2 * one + 2 * 0.5 * one)


def test_disturbed_openings_have_no_lag() -> None:
    rng = np.random.default_rng(4)
    opening = np.convolve(rng.uniform(0, 1, 404), np.ones(5) / 5, 'valid').astype(np.float32)
    lags = [metrics.lip_fit(train_sync.disturb_opening(opening, rng), opening).lag_ms
            for _ in range(20)]
    assert set(lags) == {0.0}
    assert not train_sync.disturb_opening(np.zeros(50, np.float32), rng).std() > 1.0


def test_only_training_voices_are_drawn() -> None:
    clips = train_sync.Clips(library(), 0)
    assert clips._voices == ['voice0', 'voice1']
    sound, mouth, spoken = clips.batch(3)
    assert sound.shape == (3, 64, 4 * train_sync.CLIP_FRAMES)
    assert mouth.shape == (3, 1, train_sync.CLIP_FRAMES)
    assert spoken.shape == (3, train_sync.CLIP_FRAMES - 10)
    assert torch.isfinite(sound).all()
    assert torch.isfinite(mouth).all()


def test_figures_of_the_test_split() -> None:
    figures = train_sync.judge(sync.shipped(), library())
    assert figures['clips'] == 1
    assert 0.0 <= figures['found'] <= 1.0
    assert figures['distance'] > 0.0
