# SPDX-License-Identifier: Apache-2.0
"""Pictures that explain metrics: defects that show in the value, on faces and sessions made up."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.bag import read_bag
from interactive_avatar.evaluation.explained import faces, system
from interactive_avatar.evaluation.explained.draw import Case, Explained, bars, draw, lines
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.generator.config import MemoryConfig
from interactive_avatar.training.speech.align import Phone, Word

FRAMES = 200
has_plots = importlib.util.find_spec('matplotlib') is not None


def performance(name: str, seed: int) -> HeldOut:
    """Words of /m/ and /aa/ from 1 to 5 s, silence around them; each a rhythm of its own."""
    rng = np.random.default_rng(seed)
    opening = np.zeros(FRAMES, np.float32)
    words = []
    at = 25
    while at < 120:
        shut, wide = int(rng.integers(3, 6)), int(rng.integers(3, 8))
        opening[at + shut:at + shut + wide] = 1.0
        words.append(Word('ma', (Phone('M', at / 25, (at + shut) / 25),
                                 Phone('AA', (at + shut) / 25, (at + shut + wide) / 25))))
        at += shut + wide
    audio = np.zeros(FRAMES * 640, np.int16)
    audio[25 * 640:125 * 640] = rng.integers(-4000, 4000, 100 * 640)
    return HeldOut(name, np.full((64, 64, 3), 90, np.uint8), audio, opening, ('talk',) * 50,
                   0.3 * opening, np.zeros((0, 128)), words=tuple(words))


class NoFace:
    """A judge that sees nobody."""

    def landmarks(self, frame: np.ndarray) -> None:
        return None


def material() -> faces.Material:
    """Perfect renditions of two performances: brightness and lip gap follow the opening."""
    items = [performance('one', 1), performance('two', 2)]
    made = faces.Material(None, items, NoFace(), None)  # type: ignore[arg-type]
    skin = np.random.default_rng(3).integers(0, 60, (64, 64, 3))
    made.drawn = [(skin + np.rint(40 + 100 * item.mouth_open)[:, None, None, None]
                   ).astype(np.uint8) for item in items]
    made.gaps = [0.02 + 0.3 * item.mouth_open.astype(np.float64) for item in items]
    return made


def test_each_defect_shows_in_its_metric() -> None:
    found: dict[str, Any] = {make.__name__: make(material()).values for make in (
        faces.correlation, faces.lag, faces.closing, faces.silence, faces.colour,
        faces.sharpness)}
    assert found['correlation']['good'] > 0.99 > 0.8 > found['correlation']['bad']
    assert found['lag'] == {'good': 0.0, 'bad': 1000.0 * faces.LATE_FRAMES / 25}
    assert found['closing']['good'] == 1.0 > found['closing']['bad']
    assert found['silence']['good'] < 1.0 < 50.0 < found['silence']['bad']
    assert found['colour']['bad'] > found['colour']['good'] + 2.3
    assert found['sharpness'] == {'good': pytest.approx(1.0), 'bad': pytest.approx(0.0, abs=0.1)}


def test_even_motion_has_no_seam() -> None:
    jumps = np.zeros((41, 8, 8, 3), np.uint8)
    jumps[:] = (np.arange(41) // 4 * 20)[:, None, None, None]
    smooth = faces.even(jumps)
    assert smooth.shape == jumps.shape
    assert metrics.seam_ratio(smooth[1:]) == pytest.approx(1.0)
    assert np.isnan(metrics.seam_ratio(jumps))  # nothing moves inside chunks


def test_the_mouth_is_cut_out_and_stays_inside() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    points = np.zeros((478, 3))
    points[judges.EYE_OUTER[0]], points[judges.EYE_OUTER[1]] = (40, 40, 0), (60, 40, 0)
    points[judges.MOUTH_LEFT], points[judges.MOUTH_RIGHT] = (45, 95, 0), (55, 95, 0)
    frame[77:100, 38:61] = 200
    cut = faces.mouth_crop(frame, points)
    assert cut.shape == (23, 23, 3)
    assert (cut == 200).all()
    assert faces.mouth_crop(frame, None) is frame


def test_memory_that_chooses_and_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    sizes = MemoryConfig(adjacent=1, short=1, long=3, group=1)
    reference = np.zeros((2, 16, 16), np.float32)
    # Six things that differ, then rest for long.
    latents = [*rng.normal(size=(6, 2, 16, 16)).astype(np.float32),
               *np.ones((30, 2, 16, 16), np.float32)]
    chosen, low = faces.remembered(latents, reference, sizes, 'dynamic')
    last, high = faces.remembered(latents, reference, sizes, 'fifo')
    assert low < 0.5 < high
    assert min(chosen) < 6
    assert last == [31, 32, 33]  # two are still in the queues


def test_defects_of_a_session_show(session_bag: Path) -> None:
    found = system.Session(read_bag(session_bag), None, performance('one', 1))  # type: ignore
    offset = system.av_offset(found).values
    assert offset['good'] == 0.0
    assert offset['bad'] == pytest.approx(system.DRIFT_MS, rel=0.05)
    answered = system.response(found).values
    assert answered['bad'] == pytest.approx((answered['good'] or 0.0) + system.SLOW_S, abs=0.05)
    missed = system.missed_chunks(found).values
    assert missed['good'] == 100.0 > (missed['bad'] or 0.0)
    with pytest.raises(ValueError, match='no turn with a visible action'):
        silent = system.Session(read_bag(session_bag), None, performance('one', 1))  # type: ignore
        silent.recording.states.clear()
        system.switch_to_visible(silent)


def test_a_chunk_that_stalls_shows_in_p99() -> None:
    found = system.Session(None, None, performance('one', 1))  # type: ignore[arg-type]
    flat = np.full(system.CHUNKS, 50.0)
    found.steps = flat, flat, flat
    values = system.chunk_time(found).values
    assert values == {'good': 50.0, 'bad': 50.0 + system.STALL_MS}


@pytest.mark.skipif(not has_plots, reason='matplotlib is not installed')
def test_a_picture_is_drawn(tmp_path: Path) -> None:
    frame = np.full((32, 32, 3), 90, np.uint8)
    x = np.arange(5.0)
    good = Case('as it is', '1.0', [frame, frame], ['one', 'two'],
                lines({'a': (x, x), 'b': (x, -x)}, 's', 'ms', [(1.0, 'here')], 2.0))
    bad = Case('broken', '9.0', plot=bars(['x', 'y'], [1.0, 2.0], 's', limit=1.5))
    path = draw(Explained('name', 'What it is', good, bad), tmp_path / 'deep' / 'name.webp')
    picture = Image.open(path)
    assert picture.format == 'WEBP' and picture.width == 1000 and picture.height < 500
    assert path.stat().st_size < 60_000
