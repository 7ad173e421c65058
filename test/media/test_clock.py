# SPDX-License-Identifier: Apache-2.0
"""The media clock: chunk arithmetic and exact stamps after hours."""

from __future__ import annotations

import pytest

from interactive_avatar.media.clock import (
    CHUNK_NS,
    CHUNK_SAMPLES,
    FRAME_NS,
    FRAME_RATE_HZ,
    FRAMES_PER_CHUNK,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
    MediaClock,
)


def test_units_agree() -> None:
    assert CHUNK_SAMPLES == 2560
    assert CHUNK_NS * SAMPLE_RATE_HZ == CHUNK_SAMPLES * 10**9
    assert FRAME_NS * FRAME_RATE_HZ == 10**9
    assert SAMPLES_PER_FRAME * FRAMES_PER_CHUNK == CHUNK_SAMPLES


def test_stamps_do_not_drift() -> None:
    clock = MediaClock(t0_ns=1_700_000_000_123_456_789)
    ten_hours = 10 * 3600 * 1000 // 160
    assert clock.chunk_stamp_ns(ten_hours) - clock.t0_ns == 36_000 * 10**9
    assert clock.frame_stamp_ns(3, 2) == clock.t0_ns + 3 * 160_000_000 + 80_000_000


def test_chunk_at_is_the_inverse() -> None:
    clock = MediaClock(t0_ns=1000)
    assert clock.chunk_at(1000) == 0
    assert clock.chunk_at(1000 + CHUNK_NS - 1) == 0
    assert clock.chunk_at(1000 + CHUNK_NS) == 1
    assert clock.chunk_at(999) == -1


@pytest.mark.parametrize('frame', [-1, 4])
def test_frame_outside_the_chunk_is_refused(frame: int) -> None:
    with pytest.raises(ValueError, match=str(frame)):
        MediaClock(0).frame_stamp_ns(0, frame)
