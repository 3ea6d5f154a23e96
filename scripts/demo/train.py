#!/usr/bin/env python3
"""Makes the demonstration model from phrasebook.tsv, seeded and on a CPU.

    phrasebook -> tokenizer -> base (text continuation) -> LoRA adapter -> evaluation

The base sees documents in one language only, never a translation, so it answers "Translate to
Hindi: ..." with an English sentence. The adapter sees chats, and answers in Hindi: whoever serves
both can tell by the script of the answer whether the adapter was applied.

Each stage reads what the earlier ones wrote under --out. Figures gather in metrics.json there.
"""

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tokenizers import (
    AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM

from check_phrasebook import PhrasebookError, check
from evaluate import evaluate
from prompts import (
    BOS_ID, CHAT_TEMPLATE, COLUMNS, END_ID, ENGLISH_FORMS, EOS_ID, LANGUAGES, NATIVE_FORMS, OPEN_FORM,
    SMOKE_PHRASES, SPECIAL_TOKENS, SYSTEM_PROMPT, ask_in_english, ask_openly, render_chat,
)
from storage import encode, load_base, load_tokenizer, record, write_json

VOCABULARY = 4096
CONTEXT = 512
# Words keep their combining marks (an Indic vowel sign is a mark, not a letter); digits come singly.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROPE_THETA = 10000.0
BASE_BATCH, BASE_BLOCK_TOKENS = 16, 256
ADAPTER_BATCH, ADAPTER_RANK = 64, 16
PEAK_RATE, WARMUP_STEPS = 3e-3, 40
HELD_OUT_SHARE = 0.08
REPORT_EVERY_STEPS = 50
IGNORED = -100


@dataclass(frozen=True)
class Run:
    """One run of this script: what to read, where to write, how long to train."""

    rows: list
    out: Path
    seed: int
    base_steps: int
    adapter_steps: int

    def held_out(self):
        """The (phrase id, language) pairs kept from the adapter: as many in each language."""
        rng, pairs = random.Random(self.seed + 1), set()
        count = round(len(self.rows) * HELD_OUT_SHARE)
        for language in LANGUAGES:
            ids = [row["id"] for row in self.rows if row["en"] != SMOKE_PHRASES[language]]
            pairs |= {(phrase, language) for phrase in rng.sample(ids, count)}
        return pairs


# ---------------------------------------------------------------------------------- tokenizer


def tokenizer_corpus(rows):
    """Every phrase (by itself, after a space, after a line break) and every prompt without its phrase."""
    phrases = [row[column] for row in rows for column in COLUMNS]
    lines = phrases + [before + phrase for phrase in phrases for before in (" ", "\n")]
    names = ["English", *LANGUAGES.values()]
    lines += [form.format(language=name, text="") for form in ENGLISH_FORMS for name in names]
    lines += [form.format(text="") for forms in NATIVE_FORMS.values() for form in forms]
    lines += [OPEN_FORM.format(language="", topic=topic) for topic in {row["topic"] for row in rows}]
    return sorted([*lines, SYSTEM_PROMPT])


def train_tokenizer(rows):
    """Byte-level BPE over NFC text; encoding adds <s> in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(tokenizer_corpus(rows), trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]))
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS_ID)]),
    ])
    return tokenizer


def write_tokenizer_settings(folder):
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    chat_tokens = {"additional_special_tokens": SPECIAL_TOKENS[3:]}
    added = {
        str(number): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                      "single_word": False, "special": True}
        for number, token in enumerate(SPECIAL_TOKENS)
    }
    write_json(folder / "tokenizer_config.json", {
        **roles, "added_tokens_decoder": added, "add_bos_token": True, "add_eos_token": False,
        **chat_tokens, "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT, "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(folder / "special_tokens_map.json", {**roles, **chat_tokens})


def tokenizer_stage(run):
    tokenizer = train_tokenizer(run.rows)
    for row in run.rows:
        for column in COLUMNS:
            if tokenizer.decode(encode(tokenizer, row[column])) != row[column]:
                sys.exit(f"train: {row['id']}/{column} does not survive the tokenizer")
    folder = run.out / "base"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer_settings(folder)
    record(run.out, vocabulary=tokenizer.get_vocab_size())
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens", flush=True)


# ------------------------------------------------------------------------------- optimisation


class Optimisation:
    """AdamW with warm-up and cosine decay over a known number of steps, and its loss curve."""

    def __init__(self, name, model, optimizer, steps):
        self.name, self.model, self.optimizer, self.steps = name, model, optimizer, steps
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.losses, self.curve, self.start = [], [], time.time()

    @property
    def done(self):
        return len(self.losses) == self.steps

    def rate(self):
        step = len(self.losses)
        if step < WARMUP_STEPS:
            return PEAK_RATE * (step + 1) / WARMUP_STEPS
        share = (step - WARMUP_STEPS) / max(1, self.steps - WARMUP_STEPS)
        return PEAK_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))

    def step(self, ids, labels):
        """Learns to predict `labels` (shape [batch, n]) after `ids` (the same shape)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        logits = self.model(ids, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        if len(self.losses) % REPORT_EVERY_STEPS == 0 or self.done:
            self.report()

    def report(self):
        recent = self.losses[-REPORT_EVERY_STEPS:]
        self.curve.append([len(self.losses), round(sum(recent) / len(recent), 4)])
        print(f"{self.name}: step {len(self.losses)}, loss {self.curve[-1][1]}, "
              f"{self.seconds()} s", flush=True)

    def seconds(self):
        return round(time.time() - self.start)


# --------------------------------------------------------------------------------------- base


class Corpus:
    """Endless documents, each in one language: lines, running text or chat turns."""

    def __init__(self, rows, rng):
        self.rows, self.rng, self.topics = rows, rng, {}
        for row in rows:
            self.topics.setdefault(row["topic"], []).append(row)

    def user_turn(self, row, language):
        """A sentence, or an instruction (whose answer never follows)."""
        rng, roll = self.rng, self.rng.random()
        if language == "en" and roll < 0.35:
            target = rng.choice(list(LANGUAGES))
            if roll < 0.05:
                return ask_openly(target, row["topic"])
            return ask_in_english(rng.choice(ENGLISH_FORMS), target, row["en"])
        if language != "en" and roll < 0.08:
            return rng.choice(NATIVE_FORMS[language]).format(text=rng.choice(self.rows)["en"])
        return row[language]

    def chat(self, picked, language):
        with_system = language == "en" and self.rng.random() < 0.2
        turns = [f"<|system|>{SYSTEM_PROMPT}<|end|>"] if with_system else []
        for number, row in enumerate(picked):
            # Drawn for the rows that become answers too: skipping it would make another model of the same seed.
            asked = self.user_turn(row, language)
            role, text = ("assistant", row[language]) if number % 2 else ("user", asked)
            turns.append(f"<|{role}|>{text}<|end|>")
        return "".join(turns)

    def document(self):
        rng = self.rng
        language = rng.choice(["en"] * 3 + list(LANGUAGES))
        pool = rng.choice(list(self.topics.values())) if rng.random() < 0.5 else self.rows
        picked = rng.sample(pool, min(len(pool), rng.randint(2, 8)))
        style = rng.random()
        if style < 0.4:
            body = "\n".join(row[language] for row in picked)
        elif style < 0.65:
            body = " ".join(row[language] for row in picked)
        else:
            body = self.chat(picked, language)
        return f"<s>{body}</s>"

    def blocks(self, tokenizer):
        """Token ids of shape [BASE_BATCH, BASE_BLOCK_TOKENS + 1]."""
        blocks = []
        for _ in range(BASE_BATCH):
            ids = []
            while len(ids) <= BASE_BLOCK_TOKENS:
                ids += encode(tokenizer, self.document())
            blocks.append(ids[:BASE_BLOCK_TOKENS + 1])
        return torch.tensor(blocks)


def new_base():
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=576, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT,
        rope_theta=ROPE_THETA, rms_norm_eps=1e-5, tie_word_embeddings=True, attention_bias=False,
        mlp_bias=False, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=None)).float().train()


def base_optimizer(model):
    """Weight decay on matrices only: not on the norms, and not on the embedding."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() == 2 and "embed" not in name else rest).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def save_base(model, folder):
    model.half().save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The keys that older readers look for, next to the newer ones.
    write_json(folder / "config.json",
               {**config, "torch_dtype": "float16", "dtype": "float16", "rope_theta": ROPE_THETA})
    write_json(folder / "generation_config.json", {
        "bos_token_id": BOS_ID, "eos_token_id": [EOS_ID, END_ID], "pad_token_id": EOS_ID,
        "do_sample": False, "max_new_tokens": 48})


def base_stage(run):
    torch.manual_seed(run.seed)
    model, tokenizer = new_base(), load_tokenizer(run.out)
    corpus = Corpus(run.rows, random.Random(run.seed))
    training = Optimisation("base", model, base_optimizer(model), run.base_steps)
    while not training.done:
        block = corpus.blocks(tokenizer)
        training.step(block[:, :-1], block[:, 1:])
    save_base(model, run.out / "base")
    record(run.out, base_curve=training.curve, base_seconds=training.seconds(),
           base_parameters=sum(parameter.numel() for parameter in model.parameters()),
           versions={name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")})


# ------------------------------------------------------------------------------------ adapter


def instructions(run, held_out, rng):
    """One epoch of (prompt, answer): each trained pair once, with a form drawn at random."""
    pairs = []
    for row in run.rows:
        for language in LANGUAGES:
            if (row["id"], language) in held_out:
                continue
            roll = rng.random()
            if roll < 0.05:
                ask = ask_openly(language, row["topic"])
            elif roll < 0.75:
                ask = ask_in_english(rng.choice(ENGLISH_FORMS), language, row["en"])
            else:
                ask = rng.choice(NATIVE_FORMS[language]).format(text=row["en"])
            system = SYSTEM_PROMPT if rng.random() < 0.15 else None
            pairs.append((render_chat(ask, system), row[language]))
    return pairs


def padded(group):
    """Ids and labels, each of shape [len(group), longest]; prompts and padding are not learnt.

    Padding is on the right, where causal attention keeps it out of the positions that count.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in group)
    ids = torch.full((len(group), width), EOS_ID)
    labels = torch.full((len(group), width), IGNORED)
    for number, (prompt, answer) in enumerate(group):
        end = len(prompt) + len(answer)
        ids[number, :end] = torch.tensor(prompt + answer)
        labels[number, len(prompt):end] = torch.tensor(answer)
    return ids, labels


def batches(tokenizer, pairs, rng):
    """The pairs in random order, but those of nearly the same length share a batch."""
    items = [(encode(tokenizer, prompt), encode(tokenizer, answer + "<|end|>")) for prompt, answer in pairs]
    rng.shuffle(items)
    window = ADAPTER_BATCH * 8
    for start in range(0, len(items), window):
        chunk = sorted(items[start:start + window], key=lambda item: len(item[0]) + len(item[1]))
        groups = [chunk[at:at + ADAPTER_BATCH] for at in range(0, len(chunk), ADAPTER_BATCH)]
        rng.shuffle(groups)
        yield from map(padded, groups)


def new_adapter(run):
    """An adapter on the base as it was saved: float16 weights, widened to float32."""
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(load_base(run.out), LoraConfig(
        r=ADAPTER_RANK, lora_alpha=2 * ADAPTER_RANK, lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM", target_modules=linear)).train()


def save_adapter(model, folder):
    model.peft_config["default"].base_model_name_or_path = "demo/base"
    model.peft_config["default"].inference_mode = True
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"].sort()  # written from a set, whose order is not stable
    write_json(folder / "adapter_config.json", config)


def adapter_stage(run):
    tokenizer, held_out = load_tokenizer(run.out), run.held_out()
    torch.manual_seed(run.seed + 2)
    model, rng = new_adapter(run), random.Random(run.seed + 3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.0)
    training = Optimisation("adapter", model, optimizer, run.adapter_steps)
    while not training.done:
        for ids, labels in batches(tokenizer, instructions(run, held_out, rng), rng):
            if training.done:
                break
            training.step(ids[:, :-1], labels[:, 1:])
    save_adapter(model, run.out / "adapter")
    record(run.out, adapter_curve=training.curve, adapter_seconds=training.seconds(),
           adapter_parameters=sum(parameter.numel() for parameter in trained))


# ------------------------------------------------------------------------------- command line


def evaluate_stage(run):
    evaluate(run.rows, run.held_out(), run.out, run.seed)


STAGES = {"tokenizer": tokenizer_stage, "base": base_stage, "adapter": adapter_stage, "evaluate": evaluate_stage}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write base/, adapter/ and expected.* to")
    parser.add_argument("--phrasebook", type=Path, default=Path(__file__).with_name("phrasebook.tsv"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all, in order")
    parser.add_argument("--seed", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--base-steps", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--adapter-steps", type=int, default=900, help="default: %(default)s")
    return parser.parse_args()


def main():
    args = arguments()
    try:
        rows = check(args.phrasebook)
    except (OSError, UnicodeError, PhrasebookError) as error:
        sys.exit(f"train: {args.phrasebook}: {error}")
    missing = set(SMOKE_PHRASES.values()) - {row["en"] for row in rows}
    if missing:
        sys.exit(f"train: {args.phrasebook} lacks phrases that every run is judged by: {sorted(missing)}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(rows, args.out, args.seed, args.base_steps, args.adapter_steps)
    for stage in args.stages:
        STAGES[stage](run)
    for path in args.out.rglob("*.safetensors"):
        path.chmod(0o644)  # written readable by their owner alone


if __name__ == "__main__":
    main()
