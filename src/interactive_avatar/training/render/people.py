# SPDX-License-Identifier: Apache-2.0
"""The baked file of people, read back: identities, parts, units, pictures."""

from __future__ import annotations

import colorsys
import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
POSITION_STEPS_PER_DM = 8000.0
HELD_OUT_EVERY = 10
PART_ORDER = ('body', 'eyes', 'teeth', 'tongue', 'hair', 'brows', 'lashes', 'clothes', 'glasses',
              'lenses', 'hat')
"""The first word of parts' names, in the order in which an identity lists them."""
BLEND_BEYOND = 0.25
STRETCH = 0.06
"""How far beyond its two parents a face may lie, and how much it is stretched along each axis."""


def _between(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """The blend that has ``share`` of b."""
    return a + share * (b - a)


def _recoloured(row: dict[str, Any], rng: np.random.Generator) -> None:
    """Give a part another colour, of those that its kind has."""
    kind = row['part'].split('/')[0]
    tint = np.array(row['tint'], np.float64)
    if kind == 'body':
        # Lighter or darker, warmer or cooler: still skin.
        warm, bright = rng.uniform(-0.05, 0.1), rng.uniform(0.78, 1.1)
        tint = tint * bright * np.array((1 + warm, 1, 1 - warm))
    elif kind == 'clothes' and row['strength'] > 0.0:
        tint = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.85),
                                            rng.uniform(0.2, 0.9)))
    elif kind == 'eyes':
        tint = tint * rng.uniform(0.85, 1.15, 3)
    row['tint'] = [round(float(t), 4) for t in tint]


def is_held_out(identity: int) -> bool:
    """Say whether an identity belongs to the test split (every tenth: 9, 19, ...)."""
    return identity % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


@dataclass(frozen=True)
class Part:
    """One mesh that identities are put together from.

    Attributes:
        name: unique, as `hair/short02`.
        kind: how it is shaded, one of the names in `renderer.KINDS`.
        refs: int32 [g, 3] base vertices each vertex hangs on; empty for a rigid part, whose
            positions each identity brings along.
        weights: float32 [g, 3].
        offsets: float32 [g, 3] dm.
        geometry: int32 [r] vertex of each drawn vertex.
        uvs: float32 [r, 2].
        triangles: int32 [t, 3] drawn vertices.
        vertices: number g of vertices.
        hides: bool [k] base vertices covered by it.
    """

    name: str
    kind: str
    refs: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    geometry: np.ndarray
    uvs: np.ndarray
    triangles: np.ndarray
    vertices: int
    hides: np.ndarray


class People:
    """Everything that `bake` wrote.

    Attributes:
        identities: one dict per person: `parts` (name, texture, tint), `light`, `background`,
            `pivot`, `hat_plane`, and words on who it is.
        neutral: int16 (float32 once recombined) [n, k, 3] base vertices, origin midway between the
            eyes, in steps of 1 / POSITION_STEPS_PER_DM dm.
        head_weight: float32 [k] how much each base vertex turns with the head.
        inside: float32 [k] how deep in the mouth each base vertex lies, 0 to 1.
        unit_vertex, unit_id, unit_delta: sparse face units: int32 [m], int32 [m], float32 [m, 3].
        parts: by name.
        landmarks: int32 base vertices: upper lip, lower lip, right and left mouth corner.
        eyes: int32 [2, e] base vertices of the right and left eyeball.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Args:
            path: what `bake` wrote, as `assets/people.npz`.

        Raises:
            FileNotFoundError: it is not there; the message names the command that makes it.
            ValueError: it was written by another version of this project.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'no people at {str(path)!r}; make them with '
                "'python -m interactive_avatar.training.render.bake'"
            )
        with np.load(path) as data:
            arrays = {name: data[name] for name in data.files}
        meta: dict[str, Any] = json.loads(bytes(arrays['meta']).decode())
        if meta['format'] != FORMAT:
            raise ValueError(
                f'{str(path)!r} has format {meta["format"]}, this code reads {FORMAT}; bake again '
                "with 'python -m interactive_avatar.training.render.bake'"
            )
        self.seed: int = meta['seed']
        self.identities: list[dict[str, Any]] = meta['identities']
        self.neutral = arrays['neutral']
        self.head_weight = arrays['head_weight'].astype(np.float32)
        self.inside = arrays['inside'].astype(np.float32)
        self.unit_vertex = arrays['unit_vertex'].astype(np.int32)
        self.unit_id = arrays['unit_id'].astype(np.int32)
        self.unit_delta = arrays['unit_delta'].astype(np.float32)
        self.landmarks = arrays['landmarks'].astype(np.int32)
        self.eyes = arrays['eyes'].astype(np.int32)
        self.texture_names: list[str] = meta['textures']
        self.texture_means: list[float] = meta['texture_means']
        self.background_count: int = meta['backgrounds']
        self._blob = arrays['pictures']
        self._picture_ends = arrays['picture_ends']
        self._rigid = arrays['rigid']
        base = self.neutral.shape[1]
        self.parts: dict[str, Part] = {}
        for row in meta['parts']:
            g, r, t = (slice(*row[key]) for key in ('g', 'r', 't'))
            self.parts[row['name']] = Part(
                name=row['name'],
                kind=row['kind'],
                refs=arrays['part_refs'][g].astype(np.int32),
                weights=arrays['part_weights'][g].astype(np.float32),
                offsets=arrays['part_offsets'][g].astype(np.float32),
                geometry=arrays['part_geometry'][r].astype(np.int32),
                uvs=arrays['part_uvs'][r],
                triangles=arrays['part_triangles'][t].astype(np.int32),
                vertices=row['vertices'],
                hides=np.unpackbits(arrays['part_hides'][row['hides']])[:base].astype(bool)
                if row['hides'] >= 0 else np.zeros(base, bool),
            )

    def __len__(self) -> int:
        """Count the people."""
        return len(self.identities)

    def split(self, held_out: bool) -> list[int]:
        """List the identities of one side of the split."""
        return [i for i in range(len(self)) if is_held_out(i) == held_out]

    def base(self, identity: int) -> np.ndarray:
        """Give a person's neutral base vertices: float32 [k, 3] dm, origin between the eyes."""
        return self.neutral[identity].astype(np.float32) / POSITION_STEPS_PER_DM

    def place(self, identity: int, part: str, base: np.ndarray) -> np.ndarray:
        """Give the neutral positions of a part on a person: float32 [g, 3] dm."""
        mesh = self.parts[part]
        if len(mesh.refs):
            return np.einsum('gk,gkc->gc', mesh.weights, base[mesh.refs]) + mesh.offsets
        at = self.identities[identity]['rigid'][part]
        return self._rigid[at:at + mesh.vertices].astype(np.float32) / POSITION_STEPS_PER_DM

    def recombined(self, seed: int) -> People:
        """A new population with the same split: every person who is trained on becomes another.

        A face is a blend of two with the same glasses and hat, or what lies a little beyond one of
        them, stretched along each axis; skin, hair, clothes, light and room come from others of
        the same sex, in colours of their own. Held-out people stay as they are, and nothing of
        theirs is given away.

        Args:
            seed: the same gives the same people.
        """
        rng = np.random.default_rng(seed)
        other = copy.copy(self)
        # In the same steps, but not in 16 bits: a stretched body reaches beyond them.
        other.neutral = self.neutral.astype(np.float32)
        other.identities = copy.deepcopy(self.identities)
        trained = self.split(held_out=False)
        rigid, end = [self._rigid.astype(np.float32)], len(self._rigid)
        for index in trained:
            own = self.identities[index]
            same_sex = [i for i in trained
                        if (self.identities[i]['female'] > 0.5) == (own['female'] > 0.5)]
            alike = [i for i in same_sex
                     if self.identities[i]['rigid'].keys() == own['rigid'].keys()]
            who = other.identities[index]
            partner = int(rng.choice(alike))
            share = float(rng.uniform(-BLEND_BEYOND, 1.0 + BLEND_BEYOND))
            stretch = rng.uniform(1.0 - STRETCH, 1.0 + STRETCH, 3).astype(np.float32)
            mate = self.identities[partner]
            other.neutral[index] = stretch * _between(
                self.neutral[index].astype(np.float32), self.neutral[partner].astype(np.float32),
                share)
            for name, factor in (('pivot', stretch), ('hat_plane', stretch[1:]),
                                 ('blink', np.float32(1.0))):
                # A lid that closes too far or not enough is no one's.
                blended = _between(np.array(own[name]), np.array(mate[name]),
                                   min(max(share, 0.0), 1.0) if name == 'blink' else share)
                who[name] = (factor * blended).tolist()
            for part, at in own['rigid'].items():
                count, there = self.parts[part].vertices, mate['rigid'][part]
                rigid.append(stretch * _between(
                    self._rigid[at:at + count].astype(np.float32),
                    self._rigid[there:there + count].astype(np.float32), share))
                who['rigid'][part], end = end, end + count
            donors = {kind: self.identities[int(rng.choice(same_sex))]
                      for kind in ('body', 'eyes', 'hair', 'clothes')}
            donors['brows'] = donors['hair']  # of the hair's colour
            who['parts'] = [dict(row) for kind in PART_ORDER
                            for row in donors.get(kind, own)['parts']
                            if row['part'].split('/')[0] == kind]
            for row in who['parts']:
                _recoloured(row, rng)
            room = self.identities[int(rng.choice(trained))]
            who['light'], who['background'] = copy.deepcopy(room['light']), room['background']
            key = np.array(room['light']['key']) + rng.normal(0.0, 0.15, 3)
            who['light']['key'] = [float(key[0]), max(0.1, float(key[1])), 1.0]
        other._rigid = np.concatenate(rigid)
        return other

    def with_other_looks(self, seed: int) -> People:
        """The same population with the skin, eyes, brows and hair of others on every trained
        person's shape: what is left is where everything is, and what it does.

        Args:
            seed: the same gives the same looks.
        """
        rng = np.random.default_rng(seed)
        other = copy.copy(self)
        other.identities = copy.deepcopy(self.identities)
        trained = self.split(held_out=False)
        looks = ('body', 'eyes', 'brows', 'hair')
        for index in trained:
            who = other.identities[index]
            donor = self.identities[int(rng.choice([
                i for i in trained if i != index
                and (self.identities[i]['female'] > 0.5) == (who['female'] > 0.5)]))]
            who['parts'] = [dict(row) for kind in PART_ORDER
                            for row in (donor if kind in looks else who)['parts']
                            if row['part'].split('/')[0] == kind]
        return other

    def picture(self, index: int) -> np.ndarray:
        """Decode a picture: textures first, then backgrounds. uint8 [h, w, 4] or [h, w, 3]."""
        from PIL import Image

        start = int(self._picture_ends[index - 1]) if index else 0
        raw = self._blob[start:int(self._picture_ends[index])].tobytes()
        return np.asarray(Image.open(io.BytesIO(raw)))
