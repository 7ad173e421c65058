# SPDX-License-Identifier: Apache-2.0
"""Which intent a sentence means: kernel ridge regression on sentence embeddings and words.

Embeddings generalise over wording, words keep apart what embeddings blur (`hat on`, `hat off`),
and regression on a kernel has its leave-one-out answers in closed form, so the probabilities are
calibrated on the examples themselves and a new intent needs nothing but examples.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.reasoning.persona import Persona
from interactive_avatar.reasoning.turn import MAX_UTTERANCE_CHARS, OUT_OF_SCOPE

Embed = Callable[[str], NDArray[np.float32]]

# Chosen by leave-one-out accuracy on the persona's examples.
LEXICAL_SHARE: Final = 0.2
KERNEL_SHARPNESS: Final = 2.0
RIDGE: Final = 0.2
LEXICAL_BUCKETS: Final = 2048
# Words that tell little about the intent weigh less.
COMMON_WORDS: Final = frozenset('please the a an to for me your you can could would will i is it '
                                'of do my'.split())
COMMON_WORD_WEIGHT: Final = 0.3
# Said by people and recognisers in front of what is meant.
_FILLERS = re.compile(r'^(?:(?:um+|uh+(?! huh)|er+m?|ah|hm+|so|well|okay so|now then|but)\s+)+')
_PROBE: Final = 'a probe sentence that tells one text encoder from another'
_CACHE_VERSION: Final = 1


@dataclass(frozen=True)
class Guess:
    """What a sentence seems to mean.

    Attributes:
        intent: the most probable intent, `out_of_scope` if none is accepted.
        confidence: probability of that intent, 0 to 1.
        similarity: cosine to the nearest example of any intent.
        runner_up: the next intent.
        nearest: the example that is nearest, for reports.
    """

    intent: str
    confidence: float
    similarity: float
    runner_up: str
    nearest: str


def normalise(text: str) -> str:
    """Lower-case words without punctuation, accents or fillers, as examples are compared."""
    text = unicodedata.normalize('NFKD', text[:MAX_UTTERANCE_CHARS]).lower()
    text = ''.join(char for char in text if not unicodedata.combining(char))
    text = re.sub(r"[^\w' ]+|_", ' ', text.replace('\u2019', "'"))
    text = ' '.join(text.split())
    return _FILLERS.sub('', text) or text


def sentences(text: str) -> list[str]:
    """Split at sentence ends; a text without any is one sentence."""
    return [part for part in (piece.strip() for piece in re.split(r'(?<=[.!?;])\s+', text))
            if any(char.isalnum() for char in part)]


class IntentClassifier:
    """Maps sentences to the intents of a persona.

    Args:
        persona: intents with their examples.
        embed: text to a unit vector float32 [d].
        cache: folder for the examples' embeddings, None to compute them at every start.
    """

    def __init__(self, persona: Persona, embed: Embed, cache: Path | None = None) -> None:
        self.persona = persona
        self.intents = tuple(persona.intents)
        self._embed = embed
        pairs = [(normalise(example), number)
                 for number, policy in enumerate(persona.intents.values())
                 for example in policy.examples]
        unique = dict(pairs)
        self._examples = tuple(unique)
        self._labels = np.fromiter(unique.values(), np.int64)
        self._vectors = self._load_vectors(cache)
        self._document_weight = self._word_weights()
        self._words = self._lexical(self._examples)
        self._fit()

    def guess(self, text: str) -> Guess:
        """Classify one sentence.

        Returns:
            The intent; `out_of_scope` with its confidence when nothing fits well enough.
        """
        clean = normalise(text)
        if not clean:
            return Guess(OUT_OF_SCOPE, 1.0, 0.0, OUT_OF_SCOPE, '')
        vector = np.asarray(self._embed(clean), np.float32)
        cosines = self._vectors @ vector
        words = self._lexical((clean,))
        scores = (self._kernel(cosines[None], words @ self._words.T) @ self._weights)[0]
        probability = _softmax(scores * self._sharpness)
        order = np.argsort(-probability)
        best, second = int(order[0]), int(order[1]) if order.size > 1 else int(order[0])
        nearest = int(np.argmax(cosines))
        similarity = float(cosines[nearest])
        intent = self.intents[best]
        confidence = float(probability[best])
        if intent != OUT_OF_SCOPE and (similarity < self.persona.accept_similarity
                                       or confidence < self.persona.accept_probability):
            # How far it is from being accepted is how sure the refusal is.
            return Guess(OUT_OF_SCOPE, max(0.5, 1.0 - confidence), similarity, intent,
                         self._examples[nearest])
        return Guess(intent, confidence, similarity, self.intents[second],
                     self._examples[nearest])

    def self_test(self) -> float:
        """Share of the examples that the others classify correctly (leave one out)."""
        return float(np.mean(np.argmax(self._left_out, axis=1) == self._labels))

    # --- training ----------------------------------------------------------------------------

    def _kernel(self, cosines: NDArray[np.float32],
                lexical: NDArray[np.float32]) -> NDArray[np.float64]:
        return ((1 - LEXICAL_SHARE) * np.exp(KERNEL_SHARPNESS * (cosines.astype(np.float64) - 1))
                + LEXICAL_SHARE * lexical)

    def _fit(self) -> None:
        count = len(self._examples)
        targets = np.full((count, len(self.intents)), -1.0)
        targets[np.arange(count), self._labels] = 1.0
        per_intent = np.bincount(self._labels, minlength=len(self.intents))
        # Intents with few examples are not outvoted by those with many.
        ridge = RIDGE * np.sqrt(per_intent[self._labels] / per_intent.mean())
        inverse = np.linalg.inv(self._kernel(self._vectors @ self._vectors.T,
                                             self._words @ self._words.T) + np.diag(ridge))
        self._weights = inverse @ targets
        self._left_out = targets - self._weights / np.diag(inverse)[:, None]
        self._sharpness = min(
            (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0),
            key=lambda sharpness: -float(np.mean(np.log(_softmax(self._left_out * sharpness)[
                np.arange(count), self._labels] + 1e-9))))

    def _word_weights(self) -> NDArray[np.float32]:
        counts = np.zeros(LEXICAL_BUCKETS)
        for example in self._examples:
            for bucket in {bucket for bucket, _ in _features(example)}:
                counts[bucket] += 1
        return np.log(1.0 + len(self._examples) / np.maximum(counts, 1.0)).astype(np.float32)

    def _lexical(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), LEXICAL_BUCKETS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for bucket, weight in _features(text):
                row[bucket] += weight
        rows *= self._document_weight
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    # --- embeddings, kept between starts ------------------------------------------------------

    def _load_vectors(self, cache: Path | None) -> NDArray[np.float32]:
        probe = np.asarray(self._embed(_PROBE), np.float32)
        if probe.ndim != 1 or not np.isfinite(probe).all():
            raise ValueError(f'the text encoder gave an array of shape {probe.shape}, expected a '
                             f'finite vector [d]; check the encoder model')
        file = None if cache is None else cache / f'persona-{self.persona.digest[:24]}.npz'
        if file is not None:
            # A damaged or foreign cache is simply made again.
            with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zlib.error), \
                    np.load(file, allow_pickle=False) as stored:
                vectors = stored['vectors']
                if (int(stored['version']) == _CACHE_VERSION
                        and vectors.shape == (len(self._examples), probe.size)
                        and np.isfinite(vectors).all()
                        and np.allclose(stored['probe'], probe, atol=1e-3)):
                    return np.asarray(vectors, np.float32)
        vectors = np.stack([np.asarray(self._embed(example), np.float32)
                            for example in self._examples])
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        if file is not None:
            _write_whole(file, vectors, probe)
        return vectors


def _write_whole(file: Path, vectors: NDArray[np.float32], probe: NDArray[np.float32]) -> None:
    # Renamed into place, so that a second process never reads half a file. A folder that cannot
    # be written costs a slower start and nothing else.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix='.npz')
        try:
            with os.fdopen(handle, 'wb') as stream:
                np.savez(stream, vectors=vectors, probe=probe,
                         version=np.int64(_CACHE_VERSION))
            os.replace(temporary, file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _features(text: str) -> list[tuple[int, float]]:
    """Hashed words and word pairs of a normalised text, with weights."""
    words = text.split()
    found = [(f'1 {word}', COMMON_WORD_WEIGHT if word in COMMON_WORDS else 1.0)
             for word in words]
    pairs = zip(['^', *words], [*words, '$'], strict=True)
    found += [(f'2 {first} {second}', 0.5) for first, second in pairs]
    return [(zlib.crc32(name.encode()) % LEXICAL_BUCKETS, weight) for name, weight in found]


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
