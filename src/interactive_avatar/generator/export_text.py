# SPDX-License-Identifier: Apache-2.0
"""Export of the text encoder's graph (a BERT encoder; the weights stay in their package).

Run once by developers: ``python -m interactive_avatar.generator.export_text``. It writes
``graphs/text_encoder.onnx``, whose initialisers point into MiniLM's own ``model.safetensors``.
"""

from __future__ import annotations

import io
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.export import OPSET, external_tensor, safetensors_offsets
from interactive_avatar.generator.text import GRAPH_PATH, text_model_folder


class _Layer(nn.Module):
    """A post-norm BERT layer with the parameter names of its checkpoint."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.attention_output = nn.Linear(width, width), nn.Linear(width, width)
        self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)))
        x = self.attention_norm(x + self.attention_output(attended.transpose(1, 2).flatten(2)))
        normed: Tensor = self.output_norm(x + self.output(F.gelu(self.intermediate(x))))
        return normed


class _Encoder(nn.Module):
    """Token ids [1, n] -> hidden states [1, n, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, 384)
        self.positions = nn.Embedding(512, 384)
        self.types = nn.Embedding(2, 384)
        self.norm = nn.LayerNorm(384, eps=1e-12)
        self.layer = nn.ModuleList([_Layer(384, 12, 1536) for _ in range(6)])

    def forward(self, ids: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1])[None]
        x = self.norm(self.words(ids) + self.positions(position) + self.types(ids * 0))
        for layer in self.layer:
            x = layer(x)
        hidden: Tensor = x
        return hidden


def _checkpoint_name(name: str) -> str:
    """Our parameter name -> the checkpoint's."""
    renames = (('words.', 'embeddings.word_embeddings.'),
               ('positions.', 'embeddings.position_embeddings.'),
               ('types.', 'embeddings.token_type_embeddings.'))
    for ours, theirs in renames:
        if name.startswith(ours):
            return name.replace(ours, theirs)
    if name.startswith('norm.'):
        return name.replace('norm.', 'embeddings.LayerNorm.')
    inner = (('query.', 'attention.self.query.'), ('key.', 'attention.self.key.'),
             ('value.', 'attention.self.value.'),
             ('attention_output.', 'attention.output.dense.'),
             ('attention_norm.', 'attention.output.LayerNorm.'),
             ('intermediate.', 'intermediate.dense.'), ('output_norm.', 'output.LayerNorm.'),
             ('output.', 'output.dense.'))
    prefix, index, rest = name.split('.', 2)
    for ours, theirs in inner:
        if rest.startswith(ours):
            return f'encoder.{prefix}.{index}.{rest.replace(ours, theirs, 1)}'
    raise KeyError(name)


def export(path: Path = GRAPH_PATH) -> None:
    """Write the graph."""
    encoder = _Encoder().eval()
    for parameter in encoder.parameters():
        # The exporter merges equal tensors; norms that all start at one must stay apart.
        nn.init.normal_(parameter)
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            encoder, (torch.zeros(1, 7, dtype=torch.int64),),
            buffer, input_names=['ids'],  # type: ignore[arg-type]

            output_names=['states'], dynamic_axes={'ids': {1: 'n'}, 'states': {1: 'n'}},
            opset_version=OPSET, do_constant_folding=False, dynamo=False)
    model = onnx.load_from_string(buffer.getvalue())
    offsets = safetensors_offsets(text_model_folder() / 'model.safetensors')
    own = set(encoder.state_dict())
    initializers = [external_tensor(i.name, offsets[_checkpoint_name(i.name)])
                    if i.name in own else i for i in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(model, str(path))


if __name__ == '__main__':
    export()
