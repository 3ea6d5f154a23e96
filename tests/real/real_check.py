"""Compares eka with transformers and llama.cpp on one GGUF file. Called by scripts/real-check.

    real_check.py reference GGUF MODEL_DIR OUT    logits and greedy answers of transformers, for `eka verify`
    real_check.py served GGUF MODEL_DIR URL       tokenizer, chat template and perplexity of a server
"""

import json
import math
import random
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROMPTS = [
    "What is the capital of France?",
    "Write a multiplication table for 7 from 1 to 15.",
    "Explain gravity to a child.",
    "List three uses of copper.",
    "Translate 'good morning' to French.",
    "Who wrote Hamlet?",
    "Write a haiku about rain.",
    "What is 17 + 25?",
    "Name the planets.",
    "Give a recipe for pancakes.",
    "What does HTTP stand for?",
    "Summarise the story of Cinderella.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "What is photosynthesis?",
    "Tell me a joke.",
    "How do I boil an egg?",
    "What is the speed of light?",
    "Describe a cat.",
    "Write a short letter to a landlord.",
]

# Pieces of text that tokenizers treat differently: scripts, emoji, white space, control characters, numbers, code.
PIECES = [
    "नमस्ते दुनिया", "வணக்கம்", "ಕನ್ನಡ ಭಾಷೆ", "తెలుగు", "বাংলা ভাষা", "ਪੰਜਾਬੀ", "ગુજરાતી", "മലയാളം", "ଓଡ଼ିଆ", "اردو زبان",
    "नमस्\u200dते", "e\u0301", "Größe", "naïve", "北京", "こんにちは", "😀", "👩\u200d👩\u200d👧", "🇮🇳", "❤️",
    " ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u00a0", "\u3000", "\u200b", "   \n\n  x", "\x07", "\x1b[0m", "\ufffd", "\u2028",
    "<|im_start|>", "<|im_end|>x", "<|endoftext|>", "12345", "3.14159", "٣٤٥", "१२३", "½", "x2y3", "1,000,000",
    "fn main() {}", "for(i=0;i<10;i++)", "a_b->c", "don't we've I'M it's", "__init__", "==>",
]

STRINGS = 1000
NEW_TOKENS = 32
WINDOWS, WINDOW = 80, 256
# By how much perplexities may differ, as a share.
PERPLEXITY = 1e-3


def chat(text):
    return [{"role": "user", "content": text}]


def weights(path):
    """The checkpoint's tensors, as the gguf package dequantizes them."""
    import torch
    from gguf import GGUFReader, dequantize

    modules = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    reader = GGUFReader(path)
    value = lambda key: reader.fields[f"llama.{key}"].contents()
    heads = {"attn_q": value("attention.head_count"), "attn_k": value("attention.head_count_kv")}
    tensors = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        match tensor.name.split("."):
            case ["token_embd", _]:
                tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] = weight
            case ["output_norm", _]:
                tensors["model.norm.weight"] = weight
            case [_, layer, module, _]:
                if module in heads:
                    shape = weight.shape
                    weight = weight.reshape(heads[module], shape[0] // heads[module] // 2, 2, shape[1])
                    weight = weight.swapaxes(1, 2).reshape(shape)
                tensors[f"model.layers.{layer}.{modules[module]}.weight"] = weight
    return value, tensors


def reference(path, model_dir, out):
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    value, tensors = weights(path)
    config = LlamaConfig(
        vocab_size=tensors["lm_head.weight"].shape[0],
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(tensors)
    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    template = (Path(model_dir) / "chat_template.jinja").read_text()
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([tokenizer.encode(rendered(template, chat(prompt)), add_special_tokens=False).ids])
        with torch.no_grad():
            logits = model(ids).logits[0]
            answer = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        greedy = answer[0, ids.shape[1] :].contiguous()
        expected = {"input_ids": ids[0].contiguous(), "logits_merged": logits.contiguous(), "greedy_merged": greedy}
        save_file(expected, Path(out) / f"{number}.safetensors")


def rendered(template, messages):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def strings():
    chance = random.Random(1)
    words = (ROOT / "README.md").read_text().split()
    for _ in range(STRINGS):
        pieces = (chance.choice(chance.choice([PIECES, words])) + chance.choice(["", "", " "]) for _ in range(chance.randint(1, 12)))
        yield "".join(pieces)


def check(what, good, of):
    print(f"{what}: {good} of {of} equal")
    return good == of


def in_float32(path, out):
    """Writes the GGUF file at `path` again with all weights in float32.

    llama.cpp rounds the activations of a layer to 8 bits where its weights are quantized, and computes in float32 where they are not.
    """
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(out, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def negative_log_likelihood(rows, ids):
    """Of every token of `ids` after the first, by the logits at the position before it."""
    import numpy as np

    rows = np.asarray(rows[: len(ids) - 1], dtype=np.float64)
    greatest = rows.max(1)
    totals = greatest + np.log(np.exp(rows - greatest[:, None]).sum(1))
    return float((totals - rows[np.arange(len(ids) - 1), ids[1:]]).sum())


def perplexities(llama, url):
    """Of llama.cpp and of the server, over the same windows."""
    text = "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    ids = llama.tokenize(text.encode(), add_bos=False, special=False)
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW, WINDOW)][:WINDOWS]
    sums, scored = [0.0, 0.0], 0
    for window in windows:
        llama.reset()
        llama._ctx.kv_cache_clear()
        llama.eval(window)
        sums[0] += negative_log_likelihood(llama.scores, window)
        body = {"prompt": window, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
        found = post(url, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        sums[1] -= sum(found[1 : len(window)])
        scored += len(window) - 1
    return [math.exp(total / scored) for total in sums], scored


def served(path, model_dir, url):
    from llama_cpp import GGML_TYPE_F32, Llama

    whole = Path(model_dir) / "float32.gguf"
    in_float32(path, whole)
    kinds = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
    llama = Llama(str(whole), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False, **kinds)
    equal = 0
    for text in strings():
        ours = post(url, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        equal += ours == list(llama.tokenize(text.encode(), add_bos=False, special=True))
    good = check(f"tokens of {STRINGS} strings, beside llama.cpp", equal, STRINGS)
    template = (Path(model_dir) / "chat_template.jinja").read_text()
    conversations = [chat(prompt) for prompt in PROMPTS]
    conversations += [[{"role": "system", "content": "Be brief."}, *chat("Hi"), {"role": "assistant", "content": "Hello."}, *chat("Bye")]]
    prompts = [post(url, "/apply-template", {"messages": messages})["prompt"] for messages in conversations]
    equal = sum(prompt == rendered(template, messages) for prompt, messages in zip(prompts, conversations))
    good &= check("chat templates, beside Jinja2", equal, len(conversations))
    (theirs, ours), scored = perplexities(llama, url)
    print(f"perplexity over {scored} tokens: eka {ours:.4f}, llama.cpp {theirs:.4f}, ratio {ours / theirs:.6f}")
    return good and abs(ours / theirs - 1) <= PERPLEXITY


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["reference", path, model_dir, out]:
            reference(path, model_dir, out)
        case ["served", path, model_dir, url]:
            sys.exit(0 if served(path, model_dir, url) else 1)
        case _:
            sys.exit(__doc__)
