"""Random JSON schemas, kept by eka and looked at by a validator that shares no code with it; run by scripts/schema-check.

    schema_check.py generate COUNT SEED                 one schema a line
    schema_check.py ask URL SCHEMAS MAX_TOKENS          asks for an answer to each line of the file SCHEMAS
"""

import collections
import json
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


def answer(url: str, schema: dict, place: int, most: int) -> tuple[str, str]:
    """What became of the request, and the answer or the error's message."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    body = {
        "messages": [{"role": "user", "content": "Translate to Tamil: Thank you very much."}],
        "response_format": form, "temperature": place % 2, "seed": place, "max_tokens": most,
    }
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            choice = json.load(response)["choices"][0]
            return choice["finish_reason"], choice["message"]["content"]
    except urllib.error.HTTPError as error:
        said = json.load(error)["error"]
        return f"{error.code} {said['code']}", said["message"]


def generate(count: int, seed: int) -> None:
    for place in range(count):
        print(json.dumps(Maker(random.Random(seed * 1_000_003 + place)).schema(), ensure_ascii=False))


def ask(url: str, path: str, most: int) -> None:
    ends, refusals, wrong = collections.Counter(), collections.Counter(), []
    with open(path, encoding="utf-8") as lines:
        schemas = [json.loads(line) for line in lines]
    for place, schema in enumerate(schemas):
        jsonschema.Draft202012Validator.check_schema(schema)
        end, text = answer(url, schema, place, most)
        ends[end] += 1
        if end == "stop":
            validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
            try:
                validator.validate(json.loads(text))
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


if __name__ == "__main__":
    if sys.argv[1] == "generate":
        generate(int(sys.argv[2]), int(sys.argv[3]))
    else:
        ask(sys.argv[2], sys.argv[3], int(sys.argv[4]))
