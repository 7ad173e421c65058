# SPDX-License-Identifier: Apache-2.0
"""The wan size: Wan2.1's network with audio and LSVM, for GPUs, streamed like the compact size.

`config` sizes it; `network` is the transformer; `vae` decodes Wan2.1's latents as they come;
`text` and `audio` wrap UMT5 and Wav2Vec2; `weights` brings checkpoints in; `files` is a model on
disk; `cache`, `runner` and `backend` run it; `stream` is its `AvatarStream`. Everything but
`config` and `files` needs torch, so nothing is imported here.
"""
