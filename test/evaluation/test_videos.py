# SPDX-License-Identifier: Apache-2.0
"""Other systems' videos: what is given to them, how they are read, and who is said to be ahead."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interactive_avatar.evaluation import evaluate, judges, videos
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.media.audio import read_wav
from interactive_avatar.media.video import VideoWriter
from interactive_avatar.training.speech.align import Phone, Word

SIDE_PX = 32
FRAMES = 160


def performance(name: str, seed: int = 0) -> HeldOut:
    """Four seconds of words of /m/ and /aa/ for 0.2 s each, a mouth that is shut and open, and
    2.4 s of silence."""
    rng = np.random.default_rng(seed)
    words = tuple(Word('ma', (Phone('M', 0.4 * k, 0.4 * k + 0.2),
                              Phone('AA', 0.4 * k + 0.2, 0.4 * k + 0.4))) for k in range(10))
    opening = np.zeros(FRAMES, np.float32)
    opening[:100] = np.tile([0.0] * 5 + [1.0] * 5, 10)
    audio = np.zeros(FRAMES * 640, np.int16)
    audio[:100 * 640] = rng.integers(-4000, 4000, 100 * 640)
    return HeldOut(name, np.full((SIDE_PX, SIDE_PX, 3), 90, np.uint8), audio, opening,
                   ('talk',) * (FRAMES // 4), 0.3 * opening, np.zeros((0, 128)), words=words)


class BrightnessJudge:
    """Takes a picture's brightness for the lip gap; sees no face in black."""

    def track(self, frames: Iterable[np.ndarray]) -> judges.FaceTrack:
        gap = np.array([frame.mean() / 255.0 for frame in frames])
        gap[gap < 0.02] = np.nan
        rest = np.zeros(gap.size)
        return judges.FaceTrack(gap, rest, rest, rest, rest, rest, np.zeros((gap.size, 2)))

    def __enter__(self) -> BrightnessJudge:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def pictures(opening: np.ndarray) -> np.ndarray:
    """Frames as bright as the mouth is open, uint8 [n, H, W, 3]."""
    values = np.rint(60 + 120 * opening).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (values.size, SIDE_PX, SIDE_PX, 3)).copy()


def film(path: Path, frames: np.ndarray, rate_hz: int = 25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, SIDE_PX, SIDE_PX, rate_hz, sample_rate_hz=0, crf=4) as writer:
        writer.write(frames)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, 'MeshJudge', BrightnessJudge)
    monkeypatch.setattr(judges, 'available', lambda: {'mediapipe': '', 'dlib': 'left out'})


def test_what_another_system_is_given(tmp_path: Path) -> None:
    item = performance('one')
    path, = videos.export([item], tmp_path)
    assert (read_wav(path) == item.audio).all()
    truth = json.loads((tmp_path / 'one.json').read_text())
    assert truth['frames'] == FRAMES == len(truth['mouth_open'])
    assert truth['words'][1] == {
        'text': 'ma', 'start_s': 0.4, 'end_s': 0.8,
        'phones': [{'name': 'M', 'start_s': 0.4, 'end_s': 0.6},
                   {'name': 'AA', 'start_s': 0.6, 'end_s': 0.8}]}
    assert (tmp_path / 'one.png').is_file()
    assert 'evaluate videos' in (tmp_path / 'README.md').read_text()


def test_frames_are_what_a_player_shows(tmp_path: Path) -> None:
    steps = pictures(np.arange(60) / 60.0)
    film(tmp_path / 'fast.mp4', steps, rate_hz=50)
    shown = np.array([frame.mean() for frame in videos.frames_of(tmp_path / 'fast.mp4', 30)])
    # At 50 pictures a second the middle of frame f is where picture 2 f + 1 begins.
    assert shown == pytest.approx(steps[1::2].mean(axis=(1, 2, 3)), abs=2.0)
    film(tmp_path / 'slow.mp4', steps[:10], rate_hz=10)
    slow = [frame.mean() for frame in videos.frames_of(tmp_path / 'slow.mp4', 100)]
    assert len(slow) == 25  # one second, and no more
    assert slow[4] == pytest.approx(steps[1].mean(), abs=2.0)
    folder = tmp_path / 'one'
    folder.mkdir()
    for number, frame in enumerate(steps[:3]):
        Image.fromarray(frame).save(folder / f'{number:03d}.png')
    assert [int(frame.mean()) for frame in videos.frames_of(folder, 2)] == \
        [int(frame.mean()) for frame in steps[:2]]


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    (tmp_path / 'one').mkdir()
    Image.new('RGB', (1440, 400)).save(tmp_path / 'one' / '0.png')
    frame, = videos.frames_of(tmp_path / 'one', 1)
    assert frame.shape == (200, 720, 3)


def test_a_face_that_stays_and_one_that_goes() -> None:
    rows = np.zeros((4, 128))
    assert videos.constancy(rows) == 0.0
    rows[2:, 0] = 0.7
    rows[1] = np.nan
    assert videos.constancy(rows) == pytest.approx(0.7)
    assert np.isnan(videos.constancy(np.zeros((0, 128))))


def test_who_is_ahead() -> None:
    ours = {name: [0.5, 0.6, 0.7] for name in videos.MEASURES}
    other = {name: [0.6, 0.7, 0.8] for name in videos.MEASURES}
    other['faces'] = [0.5, 0.6, float('nan')]
    found = videos.differences(ours, other)
    figure, verdict = found['closing']
    assert (figure.value, figure.n, verdict) == (pytest.approx(0.1), 3, 'better')
    assert found['silence'][1] == 'worse'
    assert found['lag'][1] == 'differs'
    assert (found['faces'][0].n, found['faces'][1]) == (2, 'undecided')


def test_the_moments_show_each_kind_of_sound() -> None:
    when = videos.moments(performance('one'))
    assert [label.split()[0] for label, _ in when] == ['M', 'AA']
    assert [frame for _, frame in when] == [2, 7]


def test_folders_are_judged_side_by_side(tmp_path: Path, judge: None,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    items = [performance('one', 1), performance('two', 2), performance('three', 3)]
    for item in items:
        film(tmp_path / 'good' / f'{item.name}.mp4', pictures(item.mouth_open))
        late = np.roll(item.mouth_open, 3)
        late[110:] = np.tile([0.0, 1.0], 25)  # restless in silence
        film(tmp_path / 'late' / f'{item.name}.mp4', pictures(late))
    (tmp_path / 'late' / 'three.mp4').unlink()
    film(tmp_path / 'good' / 'two.mp4', pictures(items[1].mouth_open[:150]))
    result = videos.compare(items, {'good': tmp_path / 'good', 'late': tmp_path / 'late'}, None,
                            tmp_path)
    assert result['performances'] == ['one', 'two']
    assert any('late: no video of three' in problem for problem in result['problems'])
    assert any('two.mp4 ends after 6.00 s of 6.40 s' in problem for problem in result['problems'])
    good, late = result['systems']['good'], result['systems']['late']
    assert good['closing']['value'] == 1.0
    assert good['correlation']['value'] > 0.99
    assert (good['lag']['value'], late['lag']['value']) == (0.0, 120.0)
    assert late['closing']['value'] < 0.5
    assert good['silence']['value'] < 5.0 < late['silence']['value']
    assert good['faces']['value'] == pytest.approx(100.0 * (1.0 + 150 / 160) / 2)
    assert result['true_pictures']['correlation']['value'] == pytest.approx(1.0)
    page = (tmp_path / 'report.html').read_text()
    assert 'late' in page and '<video' in page
    assert json.loads((tmp_path / 'report.json').read_text())['systems']['good']
    assert (tmp_path / 'moments.png').is_file() and (tmp_path / 'one.mp4').is_file()
    assert 'note: late: no video of three' in capsys.readouterr().err


def test_bad_arguments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for texts, said in ((['peer'], 'give the name of the system'),
                        ([f'peer={tmp_path / "none"}'], 'is no folder'),
                        ([f'a={tmp_path}', f'a={tmp_path}'], "the name 'a' is taken"),
                        ([], 'no videos')):
        assert evaluate.main(['videos', *texts, '--model', 'none']) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match='no video of one in'):
        videos.compare([performance('one')], {'empty': tmp_path}, None, tmp_path)
