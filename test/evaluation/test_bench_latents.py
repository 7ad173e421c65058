# SPDX-License-Identifier: Apache-2.0
"""What decoders make of true latents, on an autoencoder of two layers' worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason="torch is not installed: pip install -e '.[train]'")

from interactive_avatar.evaluation import bench_latents
from interactive_avatar.generator.autoencoder import Autoencoder
from interactive_avatar.generator.config import AutoencoderConfig


@pytest.fixture(scope='module')
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(
        picture_px=32, latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8),
        decoder_blocks=(1, 1, 1))).eval()


def clip(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_frames_come_back_as_many_and_noise_is_the_same_each_time(
        autoencoder: Autoencoder) -> None:
    frames = clip(12)
    made = bench_latents.decoded(autoencoder, frames, frames[0])
    assert made.shape == frames.shape and made.dtype == np.uint8
    noisy = [bench_latents.decoded(autoencoder, frames, frames[0], 2.0) for _ in range(2)]
    assert np.array_equal(*noisy) and not np.array_equal(noisy[0], made)
    with pytest.raises(ValueError, match='whole chunks of 4'):
        bench_latents.decoded(autoencoder, frames[:6], frames[0])


def test_true_pictures_have_no_error_and_a_jump_at_borders_is_found() -> None:
    opening = np.abs(np.sin(np.arange(40) / 3.0)).astype(np.float32)
    still = np.repeat(clip(1), 40, axis=0)
    moving = (still.astype(np.int16) // 2 + np.arange(40)[:, None, None, None]).astype(np.uint8)
    row = bench_latents.figures(moving, moving, opening.astype(np.float64), opening)
    assert row == {'l1_grey': 0.0, 'seams': pytest.approx(1.0), 'lips': pytest.approx(1.0)}
    stepped = np.repeat(moving[::4], 4, axis=0)
    stepped[1::4] += 1
    other = np.random.default_rng(1).random(40)
    row = bench_latents.figures(stepped, moving, other, opening)
    assert row['l1_grey'] > 0.5 and row['seams'] > 3.0 and row['lips'] < 0.9


def test_no_performances_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='--performances is 0'):
        bench_latents.Options((tmp_path,), 0, 12.0, 0.0, tmp_path, tmp_path)
