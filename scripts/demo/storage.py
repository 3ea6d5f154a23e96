"""What the stages hand on to each other, as files in the output folder."""

import json

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM


def write_json(path, data):
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def record(out, **figures):
    """Adds `figures` to metrics.json."""
    path = out / "metrics.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**known, **figures})


def load_tokenizer(out):
    return Tokenizer.from_file(str(out / "base" / "tokenizer.json"))


def encode(tokenizer, text):
    """Token ids of `text` without the <s> that encoding adds by default."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def load_base(out):
    """The saved float16 weights, widened to float32."""
    return LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32).eval()
