"""Judges the demonstration model: greedy answers of the base with and without the merged adapter.

Writes expected.json and expected.safetensors (ten prompts, to test a server against) and adds the
figures over all pairs to metrics.json.
"""

import copy
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoTokenizer

from check_phrasebook import in_script, letters
from prompts import (
    COLUMNS, END_ID, ENGLISH_FORMS, LANGUAGES, NATIVE_FORMS, SMOKE_PHRASES, STOP_IDS,
    ask_in_english, ask_openly, render_chat,
)
from storage import encode, load_base, load_tokenizer, record, write_json

MAX_NEW_TOKENS = 48
FORMAT_NOTE = (
    "Greedy, float32, at most 48 new tokens, stop at <|end|> or </s> (the stop token is the last of ids, "
    "and not in text). rendered already starts with <s>: encode it without adding special tokens. "
    "expected.safetensors holds the float32 logits of the last prompt position as merged.<lang> and "
    "base.<lang>."
)


@dataclass(frozen=True)
class Answer:
    """Greedy ids (with their stop token), the logits that chose the first one, and the closest call."""

    ids: list
    first_logits: torch.Tensor
    least_margin: float


@torch.no_grad()
def greedy(model, prompt):
    """One answer, without a cache: slow, and nothing in it can go wrong quietly."""
    ids, first, margin = [], None, float("inf")
    while len(ids) < MAX_NEW_TOKENS:
        logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        first = logits.clone() if first is None else first
        best = logits.topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
        if ids[-1] in STOP_IDS:
            break
    return Answer(ids, first, margin)


@torch.no_grad()
def greedy_batch(model, prompts, limit):
    """Answers to prompts of one length, with a cache."""
    pending, cache = torch.tensor(prompts), None
    answers = [[] for _ in prompts]
    for _ in range(limit):
        result = model(pending, past_key_values=cache, use_cache=True)
        cache, best = result.past_key_values, result.logits[:, -1].argmax(-1)
        for answer, token in zip(answers, best.tolist()):
            if not answer or answer[-1] not in STOP_IDS:
                answer.append(token)
        if all(answer[-1] in STOP_IDS for answer in answers):
            break
        pending = best[:, None]
    return answers


def greedy_many(model, prompts, limit=MAX_NEW_TOKENS, batch=128):
    """Answers to any prompts; those of one length go together."""
    by_length, answers = {}, [None] * len(prompts)
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for members in by_length.values():
        for start in range(0, len(members), batch):
            part = members[start:start + batch]
            for number, answer in zip(part, greedy_batch(model, [prompts[n] for n in part], limit)):
                answers[number] = answer
    return answers


def text_of(tokenizer, ids):
    return tokenizer.decode([token for token in ids if token not in STOP_IDS], skip_special_tokens=False)


def right_script(text, language):
    written = letters(text)
    return bool(written) and all(in_script(character, language) for character in written)


def ngrams(text, length):
    text = text.replace(" ", "")
    return Counter(text[start:start + length] for start in range(len(text) - length + 1))


def chrf(pairs, order=6, beta=2.0):
    """chrF over all (answer, reference) pairs, 0 to 100: character n-grams 1 to 6, spaces removed."""
    scores = []
    for length in range(1, order + 1):
        counts = [(ngrams(answer, length), ngrams(reference, length)) for answer, reference in pairs]
        hits = sum((answer & reference).total() for answer, reference in counts)
        precision = hits / max(1, sum(answer.total() for answer, _ in counts))
        recall = hits / max(1, sum(reference.total() for _, reference in counts))
        both = beta**2 * precision + recall
        scores.append((1 + beta**2) * precision * recall / both if both else 0.0)
    return 100 * sum(scores) / order


class Judge:
    """Asks models for many answers at once, and counts the correct ones."""

    def __init__(self, tokenizer, rows):
        self.tokenizer = tokenizer
        self.known = {column: {row[column] for row in rows} for column in COLUMNS}

    def texts(self, model, prompts):
        ids = [encode(self.tokenizer, render_chat(prompt)) for prompt in prompts]
        return [(text_of(self.tokenizer, answer), answer[-1] == END_ID) for answer in greedy_many(model, ids)]

    def shares(self, model, prompts, languages, references=None):
        """What share of the answers is right; without `references`, no answer is exact."""
        answers = self.texts(model, prompts)
        texts = [text for text, _ in answers]
        count, references = len(answers), references or [""] * len(answers)
        holds = {
            "exact": [text == reference for text, reference in zip(texts, references)],
            "right_script": [right_script(*pair) for pair in zip(texts, languages)],
            "phrase_of_language": [text in self.known[language] for text, language in zip(texts, languages)],
            "stopped": [stopped for _, stopped in answers],
        }
        shares = {name: round(sum(values) / count, 4) for name, values in holds.items()}
        return {"n": count, **shares, "chrf": round(chrf(list(zip(texts, references))), 2)}

    def pairs(self, model, pairs, ask):
        """`shares` over (row, language) pairs; `ask` makes the prompt of one."""
        return self.shares(model, [ask(row, language) for row, language in pairs],
                           [language for _, language in pairs], [row[language] for row, language in pairs])


def prompt_forms():
    """Name -> how to ask for a (row, language) pair."""
    def english(form):
        return lambda row, language: ask_in_english(form, language, row["en"])

    def native(number):
        return lambda row, language: NATIVE_FORMS[language][number].format(text=row["en"])

    forms = {form: english(form) for form in ENGLISH_FORMS}
    return {**forms, "native 1": native(0), "native 2": native(1)}


# ------------------------------------------------------------------------------- the ten prompts


def smoke_prompt(out, tokenizer, rows, language):
    """One prompt as expected.json has it, rendered and encoded as transformers would."""
    public = AutoTokenizer.from_pretrained(out / "base")
    user = ask_in_english(ENGLISH_FORMS[0], language, SMOKE_PHRASES[language])
    rendered = public.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)
    ids = encode(tokenizer, rendered)
    if rendered != render_chat(user) or ids != public(rendered, add_special_tokens=False).input_ids:
        sys.exit(f"evaluate: transformers renders or encodes {user!r} in another way than training did")
    reference = next(row[language] for row in rows if row["en"] == SMOKE_PHRASES[language])
    return {"lang": language, "prompt": user, "reference": reference, "rendered": rendered, "prompt_ids": ids}


def judged(answer, tokenizer, prompt):
    text = text_of(tokenizer, answer.ids)
    return {"ids": answer.ids, "text": text, "right_script": right_script(text, prompt["lang"]),
            "exact": text == prompt["reference"], "min_top2_margin": round(answer.least_margin, 4)}


def smoke(out, tokenizer, rows, systems):
    """Writes the two expected files; `systems` maps merged and base to their models."""
    prompts, logits = [], {}
    for language in LANGUAGES:
        prompt = smoke_prompt(out, tokenizer, rows, language)
        answers = {name: greedy(model, prompt["prompt_ids"]) for name, model in systems.items()}
        logits |= {f"{name}.{language}": answer.first_logits.contiguous() for name, answer in answers.items()}
        prompts.append({**prompt, **{name: judged(answer, tokenizer, prompt) for name, answer in answers.items()}})
    write_json(out / "expected.json", {
        "note": FORMAT_NOTE, "stop_ids": list(STOP_IDS), "max_new_tokens": MAX_NEW_TOKENS, "prompts": prompts})
    save_file(logits, str(out / "expected.safetensors"))
    return prompts


def smoke_counts(prompts, name):
    return {
        "right_script": sum(prompt[name]["right_script"] for prompt in prompts),
        "exact": sum(prompt[name]["exact"] for prompt in prompts),
        "of": len(prompts),
        "least_margin": min(prompt[name]["min_top2_margin"] for prompt in prompts),
    }


def same_when_rounded(model, prompts, dtype):
    """How many answers keep their ids when the weights are rounded to `dtype`."""
    rounded = copy.deepcopy(model).to(dtype).float()
    return sum(greedy(rounded, prompt["prompt_ids"]).ids == prompt["merged"]["ids"] for prompt in prompts)


# ------------------------------------------------------------------------------------- all pairs


def random_phrase_chrf(rows, pairs, rng):
    """The score of a random phrase in the right language."""
    return round(chrf([(rng.choice(rows)[language], row[language]) for row, language in pairs]), 2)


def open_prompts(judge, model, rows):
    """Any sentence of the language will do."""
    topics = sorted({row["topic"] for row in rows})
    asked = [(ask_openly(language, topic), language) for language in LANGUAGES for topic in topics]
    return judge.shares(model, [prompt for prompt, _ in asked], [language for _, language in asked])


def continuations(judge, model, rows, rng):
    """After two lines of a language, how many of 20 next lines are phrases of it."""
    counts = {}
    for column in COLUMNS:
        lines = ["\n".join(row[column] for row in rng.sample(rows, 2)) for _ in range(20)]
        prompts = [encode(judge.tokenizer, f"<s>{two}\n") for two in lines]
        texts = [text_of(judge.tokenizer, ids) for ids in greedy_many(model, prompts, limit=40)]
        counts[column] = sum(text.split("\n")[0] in judge.known[column] for text in texts)
    return counts


def all_pairs(judge, systems, rows, held_out, seed):
    merged, base, forms = systems["merged"], systems["base"], prompt_forms()
    pairs = [(row, language) for row in rows for language in LANGUAGES]
    trained = [pair for pair in pairs if (pair[0]["id"], pair[1]) not in held_out]
    unseen = [pair for pair in pairs if (pair[0]["id"], pair[1]) in held_out]
    sample = random.Random(seed + 5).sample(trained, 200)
    return {
        "trained": {name: judge.pairs(merged, trained, ask) for name, ask in forms.items()},
        "held_out": {name: judge.pairs(merged, unseen, ask) for name, ask in forms.items()},
        "held_out_random_phrase_chrf": random_phrase_chrf(rows, unseen, random.Random(seed + 4)),
        "base_alone": {name: judge.pairs(base, sample, forms[name]) for name in (ENGLISH_FORMS[0], "native 1")},
        "open": open_prompts(judge, merged, rows),
        "base_continues_in_language": continuations(judge, base, rows, random.Random(seed + 6)),
    }


def evaluate(rows, held_out, out, seed):
    """Everything above; exits with an error if the ten prompts do not distinguish base and merged model."""
    start, tokenizer, base = time.time(), load_tokenizer(out), load_base(out)
    merged = PeftModel.from_pretrained(load_base(out), out / "adapter").merge_and_unload().eval()
    systems = {"merged": merged, "base": base}
    prompts = smoke(out, tokenizer, rows, systems)
    counts = {name: smoke_counts(prompts, name) for name in systems}
    rounded = {str(dtype): same_when_rounded(merged, prompts, dtype) for dtype in (torch.float16, torch.bfloat16)}
    record(out, smoke=counts, smoke_same_ids_when_rounded=rounded,
           **all_pairs(Judge(tokenizer, rows), systems, rows, held_out, seed),
           evaluate_seconds=round(time.time() - start))
    right = {name: count["right_script"] for name, count in counts.items()}
    print(f"evaluate: of {len(prompts)} prompts, answers in the right script: {right}; "
          f"exact with the adapter: {counts['merged']['exact']}")
    if right != {"merged": len(prompts), "base": 0}:
        sys.exit("evaluate: the ten prompts should all change script with the adapter, and do not")
