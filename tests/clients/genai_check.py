"""What onnxruntime-genai generates from directories that eka exported, against transformers and eka.

Run by scripts/genai-check: genai_check.py MODELS DEMO DEMO_INT4 EKA
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"F32": np.float32, "I64": np.int64}


def tensors(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    data = content[8 + length:]

    def tensor(info):
        start, end = info["data_offsets"]
        return np.frombuffer(data[start:end], KINDS[info["dtype"]]).reshape(info["shape"])

    header = json.loads(content[8:8 + length])
    return {name: tensor(info) for name, info in header.items() if name != "__metadata__"}


def generate(folder, ids, most, end_tokens=()):
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    total = len(ids) + most
    params.set_search_options(max_length=total, min_length=0 if end_tokens else total, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(ids, np.int32))
    while not generator.is_done() and len(generator.get_sequence(0)) < total:
        generator.generate_next_token()
    answer = [int(token) for token in generator.get_sequence(0)[len(ids):]]
    ends = [place for place, token in enumerate(answer) if token in end_tokens]
    return answer[:ends[0]] if ends else answer


def check_architectures(models):
    wrong = 0
    for folder in sorted(models.iterdir()):
        expected = tensors(ROOT / "tests/fixtures/models" / folder.name / "expected.safetensors")
        answer = generate(folder, expected["input_ids"], len(expected["greedy_merged"]))
        same = sum(a == b for a, b in zip(answer, expected["greedy_merged"], strict=True))
        print(f"{folder.name}: {same} of {len(answer)} tokens as transformers and peft")
        wrong += same != len(answer)
    return wrong


def check_demo(folder, eka):
    """The ten prompts: the text that eka generates from the same directory."""
    expected = json.loads((ROOT / "tests/fixtures/demo/expected.json").read_text(encoding="utf-8"))
    tokenizer, wrong = og.Tokenizer(og.Model(str(folder))), 0
    for prompt in expected["prompts"]:
        ids = prompt["prompt_ids"]
        answer = generate(folder, ids, expected["max_new_tokens"], expected["stop_ids"])
        said = subprocess.run(
            [eka, "generate", "--model", folder, prompt["prompt"]], check=True, capture_output=True, text=True)
        same = tokenizer.decode(np.array(answer, np.int32)).strip() == said.stdout.strip()
        wrong += not same
        if not same:
            print(f"{prompt['lang']}: {tokenizer.decode(np.array(answer, np.int32))!r}, eka {said.stdout!r}")
    print(f"{folder.name}: {len(expected['prompts']) - wrong} of {len(expected['prompts'])} answers as eka's")
    return wrong


def main():
    models, demo, demo_int4, eka = map(Path, sys.argv[1:])
    wrong = check_architectures(models) + check_demo(demo, eka) + check_demo(demo_int4, eka)
    sys.exit(f"genai_check: {wrong} differ" if wrong else 0)


if __name__ == "__main__":
    main()
