# SPDX-License-Identifier: Apache-2.0
"""Speech with exact mouth shapes: many voices, phone times, mouth curves, packed for training.

`build` synthesises and aligns (a tool; needs the `train` extra and speech synthesisers);
`library` reads the packed result with numpy alone.
"""





from interactive_avatar.training.speech.library import SpeechLibrary, Utterance

__all__ = ['SpeechLibrary', 'Utterance']
