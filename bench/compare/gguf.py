"""A checkpoint of random weights as a GGUF file in bfloat16, which llama-quantize makes smaller.

A checkpoint of one's own is converted by llama.cpp's convert_hf_to_gguf.py instead, which knows its tokenizer.
"""

import json
import struct
from pathlib import Path

from . import weights

ALIGNMENT = 32
F32, BF16 = 0, 30
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}


def text(value):
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def number(value):
    return struct.pack("<I", value)


SCALARS = {"u32": (4, number), "f32": (6, lambda value: struct.pack("<f", value)), "text": (8, text),
           "bool": (7, lambda value: struct.pack("<?", value)), "i32": (5, lambda value: struct.pack("<i", value))}


def entry(key, kind, value):
    """A key and its value; a list becomes an array of `kind`."""
    code, pack = SCALARS[kind]
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", 9, code, len(value)) + b"".join(map(pack, value))
    return text(key) + number(code) + pack(value)


def metadata(config):
    heads, vocab = config["num_attention_heads"], config["vocab_size"]
    ends = ["<unk>", "<s>", "</s>"]
    return [
        entry("general.architecture", "text", "llama"),
        entry("general.file_type", "u32", 32),
        entry("llama.context_length", "u32", config["max_position_embeddings"]),
        entry("llama.embedding_length", "u32", config["hidden_size"]),
        entry("llama.block_count", "u32", config["num_hidden_layers"]),
        entry("llama.feed_forward_length", "u32", config["intermediate_size"]),
        entry("llama.attention.head_count", "u32", heads),
        entry("llama.attention.head_count_kv", "u32", config["num_key_value_heads"]),
        entry("llama.attention.layer_norm_rms_epsilon", "f32", config["rms_norm_eps"]),
        entry("llama.rope.dimension_count", "u32", config["hidden_size"] // heads),
        entry("llama.rope.freq_base", "f32", config["rope_theta"]),
        entry("llama.vocab_size", "u32", vocab),
        entry("tokenizer.ggml.model", "text", "llama"),
        entry("tokenizer.ggml.tokens", "text", ends + [f"▁w{id}" for id in range(len(ends), vocab)]),
        entry("tokenizer.ggml.scores", "f32", [0.0] * vocab),
        entry("tokenizer.ggml.token_type", "i32", [2, 3, 3] + [1] * (vocab - len(ends))),
        entry("tokenizer.ggml.bos_token_id", "u32", 1),
        entry("tokenizer.ggml.eos_token_id", "u32", 2),
        entry("tokenizer.ggml.add_bos_token", "bool", False),
    ]


def renamed(name):
    """`model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[module]}.weight"


def interleaved(matrix, rows, heads):
    """Each head's rows with the two halves of a rotation side by side, as llama.cpp has them."""
    row, half = len(matrix) // rows, rows // heads // 2
    order = ((2 * head + side) * half + place
             for head in range(heads) for place in range(half) for side in (0, 1))
    return b"".join(matrix[index * row:(index + 1) * row] for index in order)


def content(name, data, shape, config):
    """The bytes of a tensor as the GGUF file has them."""
    if len(shape) == 1:
        # A bfloat16 is the upper half of a float32.
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        return wide
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    return interleaved(data, shape[0], config[heads]) if heads else data


def directory(config):
    """Names, shapes, types and places of all tensors."""
    entries, at = [], 0
    for name, shape in weights.tensors(config):
        kind, size = (F32, 4) if len(shape) == 1 else (BF16, 2)
        sizes = b"".join(struct.pack("<Q", length) for length in reversed(shape))
        entries.append(text(renamed(name)) + number(len(shape)) + sizes + number(kind) + struct.pack("<Q", at))
        for length in shape:
            size *= length
        at += size + -size % ALIGNMENT
    return entries


def write(checkpoint: Path, output: Path):
    """Writes the checkpoint, which `weights.write` wrote, to `output`."""
    config = json.loads((checkpoint / "config.json").read_text())
    pairs, entries = metadata(config), directory(config)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs)) + b"".join(pairs + entries)
    with open(checkpoint / "model.safetensors", "rb") as source, open(output, "wb") as file:
        source.seek(8 + int.from_bytes(source.read(8), "little"))
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for name, shape in weights.tensors(config):
            size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
            tensor = content(name, source.read(size), shape, config)
            file.write(tensor)
            file.write(bytes(-len(tensor) % ALIGNMENT))
