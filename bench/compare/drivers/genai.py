"""onnxruntime-genai, greedy."""

import json

import onnxruntime_genai as og
from protocol import serve


def load(folder, threads):
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def begin(ids, steps):
        total = len(ids) + steps + 1
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        # The first token comes of the prompt's logits: it costs no step.
        generator.generate_next_token()
        return generator.generate_next_token

    return begin


if __name__ == "__main__":
    serve(og.__version__, load)
