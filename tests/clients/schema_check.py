"""Random JSON schemas, kept by eka and looked at by a validator that shares no code with it; run by scripts/schema-check.

    schema_check.py generate COUNT SEED                 one schema a line
    schema_check.py ask URL SCHEMAS MAX_TOKENS          asks for an answer to each line of the file SCHEMAS
    schema_check.py formats TEMPLATES MODEL MODELS      a copy of MODEL in MODELS for each tool format of the file TEMPLATES
    schema_check.py tools URL SCHEMAS MAX_TOKENS        asks each of those models for calls by the lines of SCHEMAS, in turn
"""

import collections
import json
import os
import pathlib
import random
import re
import sys
import urllib.error
import urllib.request

import jsonschema

WORDS = ["name", "city", "days", "नाम", "தேதி", "id", "note", "total price", "a\"b", "x_1", "größe", "tags", "🙂"]
PATTERNS = ["^[a-z]{2,6}$", "^[A-Z][a-z]+$", "[0-9]{3}", "^(yes|no)$", "^[कखग]{1,4}$", r"^\d{2}-\d{2}$", "^a.c", "(foo|bar)$"]
FORMATS = ["date", "date-time", "time", "uuid", "email", "ipv4", "ipv6", "hostname", "uri"]
# Keywords that may be rejected by name; all others must be enforced.
DOUBTFUL = {
    "not": {"type": "null"},
    "uniqueItems": True,
    "contains": {"type": "integer"},
    "propertyNames": {"pattern": "^[a-z]+$"},
    "minProperties": 2,
    "maxProperties": 3,
    "if": {"type": "string"},
    "dependentRequired": {"name": ["city"]},
    "unevaluatedProperties": False,
}


class Maker:
    """Makes schemas of moderate size, the same ones for the same seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.defs = {}

    def schema(self) -> dict:
        root = self.object(0)
        if self.rng.random() < 0.1:
            keyword = self.rng.choice(list(DOUBTFUL))
            root[keyword] = DOUBTFUL[keyword]
        if self.defs:
            root["$defs"] = self.defs
        if self.rng.random() < 0.3:
            root = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "One", "description": "A thing.", **root}
        return root

    def any(self, depth: int) -> dict:
        leaves = [self.string, self.string, self.integer, self.number, self.enum, self.const, self.boolean]
        nested = [self.object, self.array, self.any_of, self.one_of, self.all_of, self.reference, self.types]
        kinds = leaves + nested if depth < 3 else leaves
        return self.rng.choice(kinds)(depth + 1)

    def object(self, depth: int) -> dict:
        names = self.rng.sample(WORDS, self.rng.randint(1, 5 - min(depth, 3)))
        required = [name for name in names if self.rng.random() < 0.7]
        schema = {"type": "object", "properties": {name: self.any(depth) for name in names}}
        if required:
            schema["required"] = required
        more = self.rng.random()
        if more < 0.8:
            schema["additionalProperties"] = False
        elif more < 0.95:
            schema["additionalProperties"] = self.integer(depth)
        return schema

    def array(self, depth: int) -> dict:
        least = self.rng.randint(0, 2)
        schema = {"type": "array", "items": self.any(depth), "minItems": least, "maxItems": least + self.rng.randint(0, 2)}
        if self.rng.random() < 0.2:
            schema["prefixItems"] = [self.any(depth) for _ in range(self.rng.randint(1, 2))]
        return schema

    def string(self, _depth: int) -> dict:
        kind = self.rng.random()
        if kind < 0.25:
            return {"type": "string", "pattern": self.rng.choice(PATTERNS), "maxLength": 24}
        if kind < 0.45:
            return {"type": "string", "format": self.rng.choice(FORMATS)}
        least = self.rng.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + self.rng.randint(0, 12)}

    def integer(self, _depth: int) -> dict:
        schema = {"type": "integer"}
        least = self.rng.randint(-1000, 1000)
        if self.rng.random() < 0.8:
            schema |= {"minimum": least, "maximum": least + self.rng.randint(0, 5000)}
        elif self.rng.random() < 0.5:
            schema |= {"exclusiveMinimum": least}
        if self.rng.random() < 0.1:
            schema |= {"minimum": 0, "maximum": 1000, "multipleOf": self.rng.choice([2, 5, 10])}
            schema.pop("exclusiveMinimum", None)
        return schema

    def number(self, _depth: int) -> dict:
        least = round(self.rng.uniform(-50, 50), 2)
        kind = self.rng.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
        return {"type": "number", kind[0]: least, kind[1]: round(least + self.rng.uniform(0.5, 100), 2)}

    def boolean(self, _depth: int) -> dict:
        return {"type": self.rng.choice(["boolean", "null"])}

    def enum(self, _depth: int) -> dict:
        return {"enum": self.rng.sample(["red", "नीला", 1, 2.5, None, True, "a b", {"a": [1]}, "\n"], self.rng.randint(1, 5))}

    def const(self, _depth: int) -> dict:
        return {"const": self.rng.choice(["fixed", 7, None, False, ["a", 1], {"வணக்கம்": 1}])}

    def any_of(self, depth: int) -> dict:
        return {"anyOf": [self.any(depth) for _ in range(self.rng.randint(2, 3))]}

    def one_of(self, depth: int) -> dict:
        kinds = self.rng.sample([self.string, self.integer, self.boolean, self.array], 2)
        return {"oneOf": [kind(depth) for kind in kinds]}

    def all_of(self, _depth: int) -> dict:
        return {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": self.rng.randint(3, 9)}]}

    def types(self, _depth: int) -> dict:
        return {"type": self.rng.sample(["integer", "null", "boolean"], 2)}

    def reference(self, depth: int) -> dict:
        name = f"d{len(self.defs)}"
        # Reserved before its content is made, which may need names too.
        self.defs[name] = {}
        if depth < 3 and self.rng.random() < 0.3:
            tail = {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{name}"}]}
            properties = {"value": self.integer(depth), "next": tail}
            self.defs[name] = {"type": "object", "properties": properties, "required": ["value", "next"], "additionalProperties": False}
        else:
            self.defs[name] = self.any(depth)
        return {"$ref": f"#/$defs/{name}"}


def post(url: str, body: dict) -> dict:
    """The answer, or the error's status and message as `error`."""
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return {"error": {**json.load(error)["error"], "status": error.code}}


def validator(schema: dict) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def answer(url: str, schema: dict, place: int, most: int) -> tuple[str, str]:
    """What became of the request, and the answer or the error's message."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    said = post(url, {
        "messages": [{"role": "user", "content": "Translate to Tamil: Thank you very much."}],
        "response_format": form, "temperature": place % 2, "seed": place, "max_tokens": most,
    })
    if "error" in said:
        return f"{said['error']['status']} {said['error']['code']}", said["error"]["message"]
    return said["choices"][0]["finish_reason"], said["choices"][0]["message"]["content"]


def generate(count: int, seed: int) -> None:
    for place in range(count):
        print(json.dumps(Maker(random.Random(seed * 1_000_003 + place)).schema(), ensure_ascii=False))


def ask(url: str, path: str, most: int) -> None:
    ends, refusals, wrong = collections.Counter(), collections.Counter(), []
    with open(path, encoding="utf-8") as lines:
        schemas = [json.loads(line) for line in lines]
    for place, schema in enumerate(schemas):
        checked = validator(schema)
        end, text = answer(url, schema, place, most)
        ends[end] += 1
        if end == "stop":
            try:
                checked.validate(json.loads(text))
            except (ValueError, jsonschema.ValidationError) as error:
                wrong.append((place, schema, text, str(error).splitlines()[0]))
        elif end == "400 invalid_constraint":
            refusals[(re.search(r'has "([^"]+)" at', text) or re.search(r"(cannot be used: .*)", text))[1]] += 1
        elif end != "length":
            wrong.append((place, schema, text, end))
    for place, schema, text, why in wrong:
        print(f"WRONG  {place}: {why}\n  {json.dumps(schema, ensure_ascii=False)}\n  {text}")
    print(f"{len(schemas)} schemas: {ends['stop']} complete, {ends['length']} cut, {sum(refusals.values())} refused, {len(wrong)} wrong")
    for what, times in refusals.most_common():
        print(f"  refused {times} times: {what}")
    # Most must be complete, or nothing was shown.
    sys.exit(bool(wrong) or ends["stop"] < len(schemas) / 2)


def formats(templates: str, model: str, models: str) -> None:
    """Copies of a model that differ in their chat templates, and so in the form in which they write calls."""
    for part in pathlib.Path(templates).read_text(encoding="utf-8").split("### ")[1:]:
        name, _, body = part.partition("\n")
        folder = pathlib.Path(models, name.strip())
        folder.mkdir(parents=True)
        for file in pathlib.Path(model).iterdir():
            if file.name != "chat_template.jinja":
                os.link(file, folder / file.name)
        turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        text = turns + "{% if messages | length > 1 %}" + body.strip() + "{% else %}assistant: {% endif %}"
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def call_problem(said: dict, tools: dict, is_named: bool) -> str | None:
    """What is wrong with an answer that had to be calls of these tools."""
    choice = said["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    if choice["finish_reason"] == "length":
        return None
    if choice["finish_reason"] != ("stop" if is_named else "tool_calls") and choice["finish_reason"] != "tool_calls":
        return f"finish_reason {choice['finish_reason']}"
    if not calls or (is_named and len(calls) != 1):
        return f"{len(calls)} calls"
    if choice["message"].get("content"):
        return f"content {choice['message']['content']!r}"
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if name not in tools or (is_named and name != "first"):
            return f"call of {name}"
        try:
            tools[name].validate(json.loads(arguments))
        except (ValueError, jsonschema.ValidationError) as error:
            return f"{arguments}: {str(error).splitlines()[0]}"
    return None


def ask_tools(url: str, path: str, most: int) -> None:
    """Each schema is the parameters of a tool; half of the requests name it, half only require a call."""
    with urllib.request.urlopen(url + "/v1/models") as response:
        # The model that was copied has no template with tools; a tool with a large schema is too long for its preamble.
        models = sorted(model["id"] for model in json.load(response)["data"] if model["id"] != "demo")
    with open(path, encoding="utf-8") as lines:
        schemas = [json.loads(line) for line in lines]
    rows, refusals, wrong = {model: collections.Counter() for model in models}, collections.Counter(), 0
    other = {"type": "object", "properties": {"city": {"enum": ["Pune", "Kochi"]}}, "required": ["city"], "additionalProperties": False}
    for place, schema in enumerate(schemas):
        model = models[place % len(models)]
        is_named = place // len(models) % 2 == 0
        tools = {"first": validator(schema), "other": validator(other)}
        said = post(url, {
            "model": model, "messages": [{"role": "user", "content": "Translate to Tamil: Thank you."}],
            "tools": [{"type": "function", "function": {"name": name, "parameters": checked.schema}} for name, checked in tools.items()],
            "tool_choice": {"type": "function", "function": {"name": "first"}} if is_named else "required",
            "temperature": place % 3 / 2, "seed": place, "max_tokens": most,
        })
        if "error" in said:
            is_refusal = said["error"]["code"] in ("invalid_constraint", "invalid_value")
            refusals[said["error"]["message"].split(" at ")[0][-60:]] += is_refusal
            problem = None if is_refusal else said["error"]["message"]
            outcome = "refused" if is_refusal else "wrong"
        else:
            problem = call_problem(said, tools, is_named)
            outcome = "wrong" if problem else "cut" if said["choices"][0]["finish_reason"] == "length" else "valid"
        rows[model][outcome] += 1
        if problem:
            wrong += 1
            print(f"WRONG  {model}, schema {place}: {problem}\n  {json.dumps(schema, ensure_ascii=False)}")
    print(f"{'format':<20} valid   cut  refused  wrong")
    for model, row in rows.items():
        print(f"{model:<20} {row['valid']:>5} {row['cut']:>5} {row['refused']:>8} {row['wrong']:>6}")
    for what, times in (+refusals).most_common():
        print(f"  refused {times} times: {what}")
    total = sum(rows.values(), collections.Counter())
    print(f"{len(schemas)} schemas: {total['valid']} valid, {total['cut']} cut, {total['refused']} refused, {wrong} wrong")
    sys.exit(bool(wrong) or any(not row["valid"] for row in rows.values()))


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    if command == "generate":
        generate(int(given[0]), int(given[1]))
    elif command == "formats":
        formats(*given)
    else:
        (ask_tools if command == "tools" else ask)(given[0], given[1], int(given[2]))
