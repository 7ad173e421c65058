# SPDX-License-Identifier: Apache-2.0
"""Training: rendered performances (`performances`, `speech`, `render`), stages and losses.

`pipeline` runs the stages; see docs/training.md.
"""
