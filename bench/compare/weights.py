"""A checkpoint of random weights in Hugging Face's layout, which the model of every peer is made from."""

import json
import math
import random
from pathlib import Path

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}

# A shape that is exported in a second, to see whether everything works.
QUICK = TINY_LLAMA | {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}

ONE = b"\x80\x3f"
CHUNK = 1 << 22


def tensors(config):
    """Names and shapes, in the order of the file."""
    hidden, mlp, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (mlp, hidden)),
            ("mlp.up_proj", (mlp, hidden)),
            ("mlp.down_proj", (hidden, mlp)),
        ):
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def signs_and_exponents(columns):
    """Turns a random byte into the upper byte of a bfloat16 whose root mean square is about 1/sqrt(columns)."""
    # With a random lower byte, magnitudes lie between 2^(2h-127) and four times that, at 2.415 times it in the square mean.
    upper = round((math.log2(columns ** -0.5 / 2.415) + 127) / 2)
    return bytes(upper | (byte & 0x80) for byte in range(256))


def random_matrix(generator, shape):
    """The bytes of a matrix of bfloat16, in pieces."""
    table, left = signs_and_exponents(shape[1]), shape[0] * shape[1]
    while left:
        count = min(left, CHUNK)
        piece = bytearray(2 * count)
        piece[0::2] = generator.randbytes(count)
        piece[1::2] = generator.randbytes(count).translate(table)
        yield piece
        left -= count


def safetensors_header(config):
    header, at = {}, 0
    for name, shape in tensors(config):
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def words(vocabulary):
    """A tokenizer of made-up words, each a token: a model of random weights generates whole words."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": {f"w{id}": id for id in range(vocabulary)}, "merges": []},
    }


def write(folder: Path, config, seed):
    """Writes config.json, tokenizer.json and model.safetensors; the same seed gives the same bytes."""
    if config.get("model_type") != "llama" or config.get("tie_word_embeddings"):
        raise ValueError("random weights are made for model_type llama with a head of its own; give a checkpoint with --base")
    folder.mkdir(parents=True)
    generator = random.Random(seed)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(words(config["vocab_size"])))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(safetensors_header(config))
        for _, shape in tensors(config):
            if len(shape) == 1:
                file.write(ONE * shape[0])
            else:
                file.writelines(random_matrix(generator, shape))
