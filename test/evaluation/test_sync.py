# SPDX-License-Identifier: Apache-2.0
"""In-domain sync: the scorer in numpy, its weights, and what it finds on held-out truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import held_out, session_judges, sync
from interactive_avatar.evaluation.bag import Recording, Sound

NS_PER_S = 1_000_000_000
T0_NS = 1_700_000_000 * NS_PER_S
ITEM = held_out.load_set(held_out.SHIPPED_SET, 1)[0]
GAP = ITEM.true_gap[:ITEM.frames].astype(np.float64)


def recording(audio: np.ndarray, first_frame: int = 0, drop: tuple[int, ...] = ()) -> Recording:
    """A session whose avatar said ``audio`` in chunks of 160 ms, from some frame on."""
    result = Recording(Path('bag'))
    for index, samples in enumerate(audio.reshape(-1, 2560)):
        if index not in drop:
            stamp = T0_NS + first_frame * 40_000_000 + index * 160_000_000
            result.audio.append(Sound(stamp, stamp, 1, index, False, samples))
    return result


def stamps(count: int) -> np.ndarray:
    return T0_NS + 40_000_000 * np.arange(count, dtype=np.int64)


def test_gaps_are_scaled_by_the_percentiles_of_the_chosen_frames() -> None:
    gap = np.append(np.arange(101.0), [1000.0, np.nan])
    chosen = np.arange(103) < 101
    scaled = sync.scale_gap(gap, chosen)
    # The 5th and 95th percentile of 0 … 100 are 5 and 95.
    assert scaled[[5, 95, 50]] == pytest.approx([0.0, 1.0, 0.5])
    assert scaled[101] == 2.0
    assert np.isnan(scaled[102])
    assert np.isnan(sync.scale_gap(np.ones(20))).all()
    assert np.isnan(sync.scale_gap(np.full(20, np.nan))).all()


def test_a_frame_without_a_face_is_unknown_in_its_eleven_windows() -> None:
    gap = GAP[:100].copy()
    gap[40] = np.nan
    rows = sync.shipped().mouth(gap)
    known = np.isfinite(rows).all(axis=1)
    assert np.flatnonzero(~known).tolist() == [*range(5), *range(35, 46), *range(95, 100)]
    assert np.linalg.norm(rows[known], axis=1) == pytest.approx(1.0)
    chosen = np.zeros(100, bool)
    chosen[50:60] = True
    assert np.flatnonzero(np.isfinite(sync.shipped().mouth(gap, chosen)[:, 0])).tolist() == \
        list(range(50, 60))


def test_sound_is_placed_once_per_frame() -> None:
    rows = sync.shipped().sound(ITEM.audio[:640 * 30])
    assert rows.shape == (30, sync.EMBEDDING)
    assert np.flatnonzero(np.isnan(rows[:, 0])).tolist() == [*range(5), *range(25, 30)]


@pytest.mark.parametrize('shift', [-11, 0, 4])
def test_the_shift_of_a_held_out_clip_is_found(shift: int) -> None:
    fit, _, _ = sync.sync_fits([ITEM], [GAP], shift)
    assert fit.offset_ms == 40.0 * shift
    assert fit.confidence > 0.3


def test_another_sound_has_no_confidence() -> None:
    items = held_out.load_set(held_out.SHIPPED_SET, 3)
    fit, other, each = sync.sync_fits(
        items, [item.true_gap[:item.frames].astype(np.float64) for item in items])
    assert [one.offset_ms for one in each] == [0.0, 0.0, 0.0]
    assert fit.frames == sum(one.frames for one in each)
    assert other.confidence < 0.1 < 0.3 < fit.confidence


def test_loudness_and_unit_of_the_gap_do_not_matter() -> None:
    scorer, speaking = sync.shipped(), ITEM.speaking()
    fit = scorer.measure([(GAP, ITEM.audio, speaking)])
    same = scorer.measure([(100.0 * GAP + 3.0, ITEM.audio, speaking)])
    assert same.confidence == pytest.approx(fit.confidence, abs=1e-4)
    quiet = scorer.measure([(GAP, (ITEM.audio // 4).astype(np.int16), speaking)])
    assert quiet.offset_ms == 0.0
    assert quiet.confidence == pytest.approx(fit.confidence, rel=0.3)


def test_nothing_to_measure_is_nan_and_wrong_sizes_are_named() -> None:
    scorer = sync.shipped()
    assert np.isnan(scorer.measure([]).confidence)
    faceless = scorer.measure([(np.full(60, np.nan), ITEM.audio[:640 * 60], None)])
    assert np.isnan(faceless.confidence)
    assert faceless.frames == 0
    with pytest.raises(ValueError, match='60 lip gaps but 640 samples'):
        scorer.measure([(GAP[:60], ITEM.audio[:640], None)])
    with pytest.raises(ValueError, match='11 frames or more'):
        scorer.mouth(GAP[:10])
    with pytest.raises(ValueError, match='700 samples'):
        scorer.sound(ITEM.audio[:700])
    with pytest.raises(ValueError, match='60 lip gaps but 2 flags'):
        scorer.mouth(GAP[:60], np.ones(2, bool))


def test_weights_are_small_and_say_where_they_come_from() -> None:
    data = sync.WEIGHTS.read_bytes()
    assert len(data) < 1_000_000
    head = json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])
    assert 'train_sync' in head['__metadata__']['made_by']
    assert head['__metadata__']['licence'] == 'Apache-2.0'


def test_broken_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / 'sync.safetensors'
    path.write_bytes(sync.WEIGHTS.read_bytes()[:-100])
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        sync.SyncScorer.load(path)
    path.write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        sync.SyncScorer.load(path)
    tensors = sync.read_tensors(sync.WEIGHTS)
    del tensors['mouth.1.bias']
    with pytest.raises(ValueError, match=r'mouth\.1\.bias must be \(96,\), got None'):
        sync.SyncScorer(tensors)


def test_the_check_prints_its_figures_and_draws(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
        ) -> None:
    for item in held_out.load_set(held_out.SHIPPED_SET, 2):
        item.save(tmp_path)
    bench = tmp_path / 'lips.json'
    bench.write_text(json.dumps({'generated': {'in_domain_sync_distances': [1.0] * 31}}))
    monkeypatch.setattr('sys.argv', ['sync', '--source', str(tmp_path), '--plot',
                                     str(tmp_path / 'plot.png'), '--bench', str(bench)])
    sync.main()
    printed = capsys.readouterr().out
    assert 'offset 0 in 2 of 2' in printed
    assert '62 of 62 shifts found exactly' in printed
    assert (tmp_path / 'plot.png').stat().st_size > 5000


def test_a_session_is_laid_out_by_its_stamps() -> None:
    """Sound that starts 3 frames after the pictures belongs to pictures that are early by 3; a
    chunk that never came is silence, a picture that never came no face."""
    count = ITEM.frames
    fit = session_judges.sync_fit(recording(ITEM.audio), stamps(count), GAP)
    assert fit is not None
    assert fit.offset_ms == 0.0
    late = session_judges.sync_fit(recording(ITEM.audio, 3, drop=(20,)),
                                   np.delete(stamps(count), 200), np.delete(GAP, 200))
    assert late is not None
    assert late.offset_ms == -120.0


def test_a_session_without_sound_speech_or_face_has_no_sync() -> None:
    count = ITEM.frames
    silence = np.zeros_like(ITEM.audio)
    assert session_judges.sync_fit(Recording(Path('bag')), stamps(count), GAP) is None
    assert session_judges.sync_fit(recording(silence), stamps(count), GAP) is None
    assert session_judges.sync_fit(recording(ITEM.audio), stamps(count),
                                   np.full(count, np.nan)) is None
    assert session_judges.sync_fit(recording(ITEM.audio), stamps(2), GAP[:2]) is None
