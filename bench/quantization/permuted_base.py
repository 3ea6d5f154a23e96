"""Writes a Llama model from a GGUF file as a Hugging Face checkpoint in float32, with its channels permuted at random.

    python3 permuted_base.py MODEL.gguf OUT [SEED]        needs torch, transformers, gguf and safetensors

The model computes the same: one permutation of the residual stream, one of the channels of each MLP, one of the channels of each value
head. A quantizer then does not find the blocks that the file was quantized in, so formats can be compared on the weights of a quantized
file. Quantize OUT with `eka export --report TEXT`.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(gguf, out, seed=25):
    gguf = Path(gguf)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    cfg = model.config
    g = torch.Generator().manual_seed(int(seed))
    ids = torch.arange(60).reshape(1, -1) * 7 + 11
    with torch.no_grad():
        before = model(ids).logits
        r = torch.randperm(cfg.hidden_size, generator=g)
        hd = cfg.head_dim or cfg.hidden_size // cfg.num_attention_heads
        m = model.model
        m.embed_tokens.weight.data = m.embed_tokens.weight.data[:, r].contiguous()
        m.norm.weight.data = m.norm.weight.data[r].contiguous()
        for layer in m.layers:
            a, f = layer.self_attn, layer.mlp
            layer.input_layernorm.weight.data = layer.input_layernorm.weight.data[r].contiguous()
            layer.post_attention_layernorm.weight.data = layer.post_attention_layernorm.weight.data[r].contiguous()
            # All query heads of a group read the same value head, so they share its permutation.
            kv_heads = cfg.num_key_value_heads
            group = cfg.num_attention_heads // kv_heads
            within = [torch.randperm(hd, generator=g) for _ in range(kv_heads)]
            v = torch.cat([head * hd + order for head, order in enumerate(within)])
            o = torch.cat([head * hd + within[head // group] for head in range(kv_heads * group)])
            p = torch.randperm(cfg.intermediate_size, generator=g)
            for lin in (a.q_proj, a.k_proj):
                lin.weight.data = lin.weight.data[:, r].contiguous()
            a.v_proj.weight.data = a.v_proj.weight.data[v][:, r].contiguous()
            a.o_proj.weight.data = a.o_proj.weight.data[r][:, o].contiguous()
            f.gate_proj.weight.data = f.gate_proj.weight.data[p][:, r].contiguous()
            f.up_proj.weight.data = f.up_proj.weight.data[p][:, r].contiguous()
            f.down_proj.weight.data = f.down_proj.weight.data[r][:, p].contiguous()
        model.tie_weights()
        after = model(ids).logits
    print("greatest difference of logits", (before - after).abs().max().item())
    Path(out).mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, f"{out}/model.safetensors", {"format": "pt"})
    config = cfg.to_dict()
    config.pop("quantization_config", None)
    config.update(dtype="float32", architectures=["LlamaForCausalLM"], tie_word_embeddings=True)
    Path(f"{out}/config.json").write_text(json.dumps(config, default=str, indent=1))
    tok.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
