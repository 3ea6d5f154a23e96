"""transformers, greedy, in bfloat16: without further libraries it has no int4 on a CPU."""

import torch
import transformers
from protocol import serve


def load(folder, threads):
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def forward(ids, cache):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values

    def begin(ids, _steps):
        state = list(forward(torch.tensor([ids]), None))

        def step():
            state[:] = forward(*state)

        return step

    return begin


if __name__ == "__main__":
    serve(f"{transformers.__version__} (torch {torch.__version__})", load)
