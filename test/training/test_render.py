# SPDX-License-Identifier: Apache-2.0
"""The renderer on a made-up person of a few triangles: no downloads, no GPU needed."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interactive_avatar.training.render import shapes
from interactive_avatar.training.render.people import FORMAT, STRETCH, People, is_held_out
from interactive_avatar.training.units import UNITS, index

moderngl = pytest.importorskip('moderngl', reason='moderngl is not installed (extra: train)')

LIGHT = {'key': [0.3, 0.5, 1.0], 'key_colour': [1.0, 1.0, 1.0], 'key_power': 0.9,
         'fill_power': 0.5, 'rim_power': 0.2}


def _jpeg(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new('RGB', (8, 8), colour).save(stream, 'JPEG', quality=95)
    return stream.getvalue()


@pytest.fixture(scope='module')
def people_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two people: a red and a green square face, 1.2 dm wide, with a jaw that drops."""
    base = np.array([[-0.6, -1.0, 0], [0.6, -1.0, 0], [0.6, 0.6, 0], [-0.6, 0.6, 0],
                     [-0.3, 0.0, 0.0], [0.3, 0.0, 0.0]], np.float32)
    hat = np.array([[-0.5, 0.7, 0.1], [0.5, 0.7, 0.1], [0.0, 1.2, 0.1]], np.float32)
    pictures = [_jpeg((200, 60, 60)), _jpeg((60, 200, 60)), _jpeg((255, 255, 255)),
                _jpeg((40, 40, 220))]
    rows = [
        {'name': 'body', 'kind': 'skin', 'vertices': 6, 'g': [0, 6], 'r': [0, 4], 't': [0, 2],
         'hides': -1},
        {'name': 'hat/test', 'kind': 'hat', 'vertices': 3, 'g': [6, 6], 'r': [4, 7], 't': [2, 3],
         'hides': -1},
    ]
    identities = [{
        'parts': [{'part': 'body', 'texture': i, 'tint': [1, 1, 1], 'strength': 0.0},
                  {'part': 'hat/test', 'texture': 2, 'tint': [1, 1, 0], 'strength': 1.0}],
        'rigid': {'hat/test': 0}, 'light': LIGHT, 'background': 0, 'pivot': [0.0, -1.0, -0.5],
        'hat_plane': [0.7, 0.0], 'blink': 1.0,
    } for i in range(2)]
    meta = {'format': FORMAT, 'seed': 0, 'identities': identities, 'parts': rows,
            'textures': ['red', 'green', 'white'], 'texture_means': [0.4, 0.4, 1.0],
            'backgrounds': 1}
    path = tmp_path_factory.mktemp('people') / 'people.npz'
    np.savez(
        path, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
        neutral=np.repeat((base * 8000).astype(np.int16)[None], 2, 0),
        head_weight=np.ones(6, np.float16), inside=np.zeros(6, np.float16),
        unit_id=np.full(2, index('jawOpen'), np.uint8), unit_vertex=np.array([0, 1], np.uint16),
        unit_delta=np.array([[0, -0.4, 0]] * 2, np.float16),
        landmarks=np.array([2, 0, 0, 1], np.int32), eyes=np.array([[4], [5]], np.int32),
        part_refs=np.repeat(np.arange(6, dtype=np.uint16)[:, None], 3, 1),
        part_weights=np.repeat(np.array([[1.0, 0, 0]], np.float32), 6, 0),
        part_offsets=np.zeros((6, 3), np.float32),
        part_geometry=np.array([0, 1, 2, 3, 0, 1, 2], np.uint16),
        part_uvs=np.zeros((7, 2), np.float32),
        part_triangles=np.array([[0, 1, 2], [0, 2, 3], [0, 1, 2]], np.uint16),
        part_hides=np.zeros((1, 1), np.uint8), rigid=(hat * 8000).astype(np.int16),
        pictures=np.frombuffer(b''.join(pictures), np.uint8),
        picture_ends=np.cumsum([len(p) for p in pictures]))
    return path


@pytest.fixture(scope='module')
def renderer(people_file: Path):
    """Open a small renderer, or say why not."""
    from interactive_avatar.training.render.renderer import Renderer

    try:
        made = Renderer(people_file, size=64, tiles=2)
    except RuntimeError as error:
        pytest.skip(f'no EGL here: {error}')
    yield made
    made.close()


def _still(n: int) -> np.ndarray:
    return np.zeros((n, len(UNITS)), np.float32)


def _reddish(frames: np.ndarray) -> np.ndarray:
    return (frames[..., 0] > 120) & (frames[..., 2] < 110) & (frames[..., 1] < 130)


def test_units_are_the_52_of_arkit_in_order() -> None:
    assert len(UNITS) == 52 and list(UNITS) == sorted(UNITS)
    assert UNITS[index('jawOpen')] == 'jawOpen'
    with pytest.raises(KeyError, match='jawopen'):
        index('jawopen')


def test_every_tenth_person_is_held_out(people_file: Path) -> None:
    assert [i for i in range(40) if is_held_out(i)] == [9, 19, 29, 39]
    people = People(people_file)
    assert people.split(held_out=False) == [0, 1] and people.split(held_out=True) == []


def test_a_population_put_together_anew_keeps_who_is_held_out(people_file: Path) -> None:
    people = People(people_file)
    people.identities = [dict(copy.deepcopy(people.identities[number % 2]), female=0.2)
                         for number in range(20)]
    people.neutral = np.arange(20, dtype=np.int16)[:, None, None] * 100 + people.neutral[:1]
    other, again = people.recombined(3), people.recombined(3)
    for held in (9, 19):
        assert other.identities[held] == people.identities[held]
        np.testing.assert_array_equal(other.neutral[held], people.neutral[held])
    np.testing.assert_array_equal(other.neutral, again.neutral)
    assert other.identities == again.identities
    moved = np.abs(other.neutral.astype(int) - people.neutral).max((1, 2)) > 0
    assert moved.sum() > 10 and (people.recombined(4).neutral != other.neutral).any()
    textures = [who['parts'][0]['texture'] for who in other.identities]
    assert textures != [who['parts'][0]['texture'] for who in people.identities]
    for number, who in enumerate(other.identities):
        assert [row['part'] for row in who['parts']] == ['body', 'hat/test']
        place = other.place(number, 'hat/test', other.base(number))
        before = people.place(0, 'hat/test', people.base(0))
        # All hats are one, so what is left of the blend is the stretch along each axis.
        stretch = (place * before).sum(0) / (before ** 2).sum(0)
        np.testing.assert_allclose(place, stretch * before, atol=2e-4)
        assert (np.abs(stretch - 1.0) <= STRETCH + 1e-3).all()
        assert (np.ptp(stretch) > 1e-3) != is_held_out(number)


def test_a_twin_has_the_shape_and_the_looks_of_somebody_else(people_file: Path) -> None:
    people = People(people_file)
    people.identities = [dict(copy.deepcopy(people.identities[number % 2]), female=number % 4 / 2)
                         for number in range(20)]
    for number, who in enumerate(people.identities):
        who['parts'][0]['texture'] = number
        who['parts'][1]['strength'] = float(number)
    people.neutral = np.arange(20, dtype=np.int16)[:, None, None] * 100 + people.neutral[:1]
    other, again = people.with_other_looks(1), people.with_other_looks(1)
    assert other.identities == again.identities
    np.testing.assert_array_equal(other.neutral, people.neutral)
    for number, (who, own) in enumerate(zip(other.identities, people.identities, strict=True)):
        if is_held_out(number):
            assert who == own
            continue
        body, hat = who['parts']
        donor = people.identities[body['texture']]
        assert body['texture'] != number and not is_held_out(body['texture'])
        assert (donor['female'] > 0.5) == (own['female'] > 0.5)
        assert hat == own['parts'][1] and who['light'] == own['light']


def test_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'render\.bake'):
        People(tmp_path / 'none.npz')


def test_frames_show_each_person_whatever_the_order(renderer) -> None:
    who = np.array([1, 0, 0, 1, 0, 1, 1])
    frames, marks = renderer.render(who, _still(7))
    assert frames.shape == (7, 64, 64, 3) and frames.dtype == np.uint8
    assert marks.shape == (7, 3, 2) and marks.dtype == np.float32
    red = _reddish(frames).sum((1, 2)) > 200
    np.testing.assert_array_equal(red, who == 0)
    alone = renderer.render(0, _still(1))[0][0]
    np.testing.assert_array_equal(frames[1], alone)
    assert frames[0, 0, 0, 2] > 180, 'the background is blue'


def test_jaw_moves_the_measured_gap(renderer) -> None:
    units = _still(3)
    units[:, index('jawOpen')] = 0.0, 0.5, 1.0
    frames, _, gap = renderer.render_with_gap(0, units)
    assert gap[1] > gap[0] and gap[2] > gap[1]
    assert _reddish(frames[2]).sum() > _reddish(frames[0]).sum()


def test_head_turns_and_moves_as_promised(renderer) -> None:
    head = np.zeros((7, 6), np.float32)
    head[1, 0], head[2, 1], head[3, 2] = 0.3, 0.3, 0.3
    head[4, 3], head[5, 4], head[6, 5] = 0.05, 0.05, 0.2
    _, marks = renderer.render(0, _still(7), head)
    rest, eyes = marks[0, 1:].mean(0), marks[:, 1:].mean(1)
    assert eyes[1, 0] > rest[0], 'yaw: to the right of the picture'
    assert eyes[2, 1] < rest[1], 'pitch: up'
    assert eyes[3, 0] > rest[0], 'roll: crown to the right of the picture'
    assert eyes[4, 0] > rest[0] and eyes[5, 1] < rest[1]
    spread = marks[:, 2, 0] - marks[:, 1, 0]
    assert spread[6] > spread[0] > 0, 'nearer is larger; the right eye lies left in the picture'


def test_a_person_can_leave_the_view(renderer) -> None:
    head = np.zeros((1, 6), np.float32)
    head[0, 3] = 0.6
    frames, marks = renderer.render(0, _still(1), head)
    assert not _reddish(frames).any() and (marks[..., 0] > 64).all()


def test_hat_comes_down_from_above(renderer) -> None:
    frames, _ = renderer.render(0, _still(3), hat=np.array([0.0, 0.5, 1.0]))
    yellow = (frames[..., 0] > 120) & (frames[..., 1] > 120) & (frames[..., 2] < 110)
    assert yellow[0].sum() == 0 and yellow[2].sum() > 20
    assert yellow[2].any(1).argmax() > 2, 'worn, it is inside the frame'


def test_bad_arguments_say_what_was_wrong(renderer) -> None:
    with pytest.raises(ValueError, match=r'\(1, 51\)'):
        renderer.render(0, np.zeros((1, 51)))
    with pytest.raises(ValueError, match='identity 5'):
        renderer.render(5, _still(1))
    with pytest.raises(ValueError, match='head has shape'):
        renderer.render(0, _still(2), np.zeros((1, 6)))


@pytest.mark.parametrize('kind', shapes.GLASSES_KINDS)
def test_glasses_are_symmetric_and_clear_the_face(kind: str) -> None:
    fit = shapes.HeadFit(np.array([0.31, 0.0, 0.0], np.float32), 0.25, 0.6, -1.0,
                         np.array([[-0.7, 0.4, -1.4], [0.7, 1.2, 0.3]], np.float32))
    frame, lens = shapes.glasses(kind, fit)
    assert abs(frame.vertices[:, 0].min() + frame.vertices[:, 0].max()) < 1e-4
    assert abs(lens.vertices[:, 2].max() - 0.25) < 0.05
    assert frame.triangles.max() < len(frame.vertices)


@pytest.mark.parametrize('kind', shapes.HAT_KINDS)
def test_hats_enclose_the_skull(kind: str) -> None:
    skull = np.array([[-0.7, 0.4, -1.4], [0.7, 1.2, 0.3]], np.float32)
    fit = shapes.HeadFit(np.array([0.31, 0, 0], np.float32), 0.25, 0.6, -1.0, skull)
    mesh, (edge, _) = shapes.hat(kind, fit)
    assert (mesh.vertices.max(0) > skull[1]).all() and mesh.vertices[:, 0].min() < -0.7
    assert 0.0 < edge < 1.0


def test_backgrounds_are_deterministic() -> None:
    for style in ('plain', 'gradient', 'room'):
        one, two = (shapes.background(np.random.default_rng(3), style, 32) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match='beach'):
        shapes.background(np.random.default_rng(3), 'beach', 32)
