# SPDX-License-Identifier: Apache-2.0
"""Metrics against cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from interactive_avatar.evaluation import metrics

CHUNK_NS = 160_000_000


def grey(*levels: int, size: int = 4) -> np.ndarray:
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def test_correlation_by_hand() -> None:
    a = np.arange(8.0)
    assert metrics.correlation(a, 3 * a + 1) == pytest.approx(1.0)
    assert metrics.correlation(a, -a) == pytest.approx(-1.0)
    assert np.isnan(metrics.correlation(a, np.ones(8)))
    assert np.isnan(metrics.correlation(a[:4], a[:4]))
    # Sum of products 1 * 1 over sqrt(2 * 2): half of the deviations agree.
    b, c = np.tile([1.0, -1.0, 0.0], 4), np.tile([1.0, 0.0, -1.0], 4)
    assert metrics.correlation(b, c) == pytest.approx(0.5)


def test_correlation_leaves_out_frames_without_a_face() -> None:
    a = np.arange(10.0)
    b = a.copy()
    b[3] = np.nan
    assert metrics.correlation(a, b) == pytest.approx(1.0)
    with pytest.raises(ValueError, match='10 and 9'):
        metrics.correlation(a, b[:9])


@pytest.mark.parametrize('lag', [-3, 0, 2])
def test_lip_fit_finds_the_lag_and_its_sign(lag: int) -> None:
    true = np.random.default_rng(1).normal(size=200)
    measured = np.roll(true, lag) * 0.1 + 4.0
    fit = metrics.lip_fit(measured[12:-12], true[12:-12])
    assert fit.lag_ms == pytest.approx(40.0 * lag)
    assert fit.correlation == pytest.approx(1.0)
    assert fit.frames == 176 - abs(lag)


def test_lip_fit_refuses_short_series() -> None:
    with pytest.raises(ValueError, match='lags of ±10'):
        metrics.lip_fit(np.zeros(20), np.zeros(20))


def test_in_domain_sync_by_hand() -> None:
    """Mouths on a line, at the place of the sound one frame before: distance 0 at +1; mouths of
    0, 1, 0, 1 … against sounds of the same are 1 apart at odd shifts and 0 at even ones."""
    places = np.random.default_rng(5).normal(size=(40, 1))
    fit = metrics.in_domain_sync(np.roll(places, 1, axis=0), places, max_offset_frames=2)
    assert fit.offset_ms == 40.0
    assert fit.distance == 0.0
    assert fit.confidence == pytest.approx(np.median(fit.distances))
    assert fit.frames == 36
    blink = (np.arange(40.0) % 2)[:, None]
    fit = metrics.in_domain_sync(blink, blink, max_offset_frames=3)
    assert fit.distances.tolist() == [1, 0, 1, 0, 1, 0, 1]
    # The least of equal shifts is taken; the median of four ones and three zeros is 1.
    assert (fit.offset_ms, fit.distance, fit.confidence) == (0.0, 0.0, 1.0)


def test_in_domain_sync_leaves_out_what_is_unknown_at_any_shift() -> None:
    blink = np.tile([[0.0], [1.0]], (20, 1))
    mouth, sound = blink.copy(), blink.copy()
    mouth[10] = np.nan
    sound[20] = np.nan
    # Of 34 frames, 10 has no mouth and 17 to 23 hear frame 20 at some shift.
    assert metrics.in_domain_sync(mouth, sound, 3).frames == 34 - 1 - 7
    nothing = metrics.in_domain_sync(mouth[:12], sound[:12], 3)
    assert np.isnan(nothing.confidence)
    # Six frames have three on either side, two too few.
    assert nothing.frames == 6
    with pytest.raises(ValueError, match=r'need \[n, d\] for both'):
        metrics.in_domain_sync(mouth, sound[1:])


def test_motion_ratio_by_hand() -> None:
    values = [0.0, 2.0, 0.0, 2.0, 2.0, 2.5, 3.0]
    speaking = [True, True, True, True, False, False, False]
    # Speech changes by 2, 2, 2; silence by 0.5, 0.5; the pair across the border counts nowhere.
    assert metrics.motion_ratio(values, speaking) == pytest.approx(0.25)
    assert np.isnan(metrics.motion_ratio(values, np.ones(7, bool)))


def test_frame_change_and_seam_ratio_by_hand() -> None:
    frames = grey(0, 1, 2, 3, 7, 8, 9, 10, 14)
    assert metrics.frame_change(frames) == pytest.approx([1, 1, 1, 4, 1, 1, 1, 4])
    assert metrics.seam_ratio(frames) == pytest.approx(4.0)
    assert np.isnan(metrics.seam_ratio(grey(5, 5, 5, 5, 5)))
    with pytest.raises(ValueError, match='need 5'):
        metrics.seam_ratio(grey(1, 2))


def test_luma_is_blind_to_tints() -> None:
    frames = np.full((3, 8, 8, 3), 120, np.uint8)
    frames[1] += np.array([10, 0, 0], np.uint8)
    frames[2] += np.array([0, 5, 0], np.uint8)  # about as bright
    assert metrics.luma_change(frames) == pytest.approx([2.99, abs(2.935 - 2.99)], abs=1e-3)
    assert metrics.frame_change(frames) == pytest.approx([10 / 3, 5.0])



def test_sharpness_by_hand() -> None:
    assert metrics.sharpness(grey(10, 200)) == pytest.approx([0.0, 0.0])
    dot = grey(0, size=5)
    dot[0, 2, 2] = 100
    # Inner 3 x 3 of the Laplacian: -400 in the middle, 100 on its four sides, 0 in the corners.
    expected = np.var([0, 100, 0, 100, -400, 100, 0, 100, 0])
    assert metrics.sharpness(dot)[0] == pytest.approx(expected, rel=1e-5)


def test_lab_of_known_colours() -> None:
    lab = metrics.srgb_to_lab([[255, 255, 255], [0, 0, 0], [255, 0, 0]])
    assert lab[0] == pytest.approx([100, 0, 0], abs=0.02)
    assert lab[1] == pytest.approx([0, 0, 0], abs=0.02)
    assert lab[2] == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


def test_colour_drift_of_greys_is_a_difference_of_lightness() -> None:
    # sRGB grey 119 has L* = 50.03.
    drift = metrics.colour_drift(grey(119, 255), grey(119)[0])
    assert drift == pytest.approx([0.0, 100.0 - 50.034], abs=0.02)


def test_identity_distance() -> None:
    distance = metrics.identity_distance([[0.0, 0.0], [3.0, 4.0], [np.nan, 0.0]], [0.0, 0.0])
    assert distance[:2] == pytest.approx([0.0, 5.0])
    assert np.isnan(distance[2])
    with pytest.raises(ValueError, match='same judge'):
        metrics.identity_distance(np.zeros((2, 3)), np.zeros(4))


def test_slope_per_minute() -> None:
    slope = metrics.slope_per_minute([0, 30, 60, 90], [1.0, 1.5, np.nan, 2.5])
    assert slope.per_minute == pytest.approx(1.0)
    assert slope.standard_error == pytest.approx(0.0, abs=1e-9)
    # Points (0, 0), (1, 2), (2, 1) minutes: slope 0.5, residuals -0.5, 1, -0.5, error sqrt(1.5/2).
    slope = metrics.slope_per_minute([0, 60, 120], [0, 2, 1])
    assert slope.per_minute == pytest.approx(0.5)
    assert slope.standard_error == pytest.approx(np.sqrt(0.75))
    assert np.isnan(metrics.slope_per_minute([0, 1], [0, 1]).per_minute)


def test_real_time_factor_and_percentiles() -> None:
    assert metrics.real_time_factor(3.0, 6.0) == 0.5
    with pytest.raises(ValueError, match=r'0\.0 s of media'):
        metrics.real_time_factor(1.0, 0.0)
    assert metrics.percentiles(np.arange(101)) == {'p50': 50.0, 'p95': 95.0, 'p99': 99.0}
    assert np.isnan(metrics.percentiles([])['p50'])


def test_delivery_counts_loss_and_lateness() -> None:
    index = np.array([i for i in range(25) if i not in (9, 10)])
    stamps = index * CHUNK_NS
    arrivals = stamps + 50_000_000
    arrivals[-1] += 200_000_000
    seen = metrics.delivery(stamps, arrivals)
    assert (seen.chunks, seen.lost, seen.late, seen.seconds) == (23, 2, 1, 4)
    # Chunk 11 (1.76 s) follows the gap; chunk 24 (3.84 s) is 40 ms later than the buffer allows.
    assert seen.clean_seconds == 2
    assert seen.clean_share == 0.5
    assert seen.worst_late_ms == pytest.approx(40.0)


def test_delivery_of_nothing() -> None:
    assert metrics.delivery([], []).chunks == 0
    assert np.isnan(metrics.delivery([], []).clean_share)


def test_av_offsets() -> None:
    frames = np.arange(8) * 40_000_000 + 3_000_000
    assert metrics.av_offsets_ms(frames, [0, CHUNK_NS]) == pytest.approx([3.0, 3.0])
    # A chunk without a picture is left out.
    assert metrics.av_offsets_ms(frames, [10 * CHUNK_NS]).size == 0
    assert metrics.av_offsets_ms([], [0]).size == 0


def test_first_change() -> None:
    values = np.r_[np.tile([1.0, 1.2], 10), 1.1, 1.2, 5.0, 5.0]
    assert metrics.first_change(values, 20) == 22
    assert metrics.first_change(values, 20, floor=10.0) is None
    assert metrics.first_change(values, 3) is None


def test_word_error_rate() -> None:
    assert metrics.word_error_rate('Please nod!', 'please, nod') == 0.0
    assert metrics.word_error_rate('put on your glasses', 'put your glass is') == 0.75
    assert metrics.word_error_rate("what's that", 'whats that') == 0.0
    with pytest.raises(ValueError, match='no words'):
        metrics.word_error_rate('...', 'a')


def test_separation_by_hand() -> None:
    # Pairs of (1, 3) with (2, 3, nan): 2 > 1, 3 > 1, 2 < 3, 3 = 3: (2 + ½) of 4.
    assert metrics.separation([1.0, 3.0], [2.0, 3.0, float('nan')]) == pytest.approx(0.625)
    assert metrics.separation([0.0, 0.1], [0.2, 5.0]) == 1.0
    assert np.isnan(metrics.separation([], [1.0]))
    assert np.isnan(metrics.separation([1.0], [float('nan')]))
