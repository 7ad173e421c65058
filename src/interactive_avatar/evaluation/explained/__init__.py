# SPDX-License-Identifier: Apache-2.0
"""Each metric explained by a picture of a good and a bad case, with its value beside each.

    python -m interactive_avatar.evaluation.explained --bag out/demo/bag --out docs/metrics

The good case is what the shipped model draws, or what a session of the running graph holds. The
bad case is the same with a defect put in on purpose, or a model with a part taken out; each
picture says which. Values are the metric's of this one case; they are no figures of the model.
"""
