"""Section B: model folders. Each case starts a server on a folder that is damaged or hostile."""

import json
import os
import shutil
import socket
import subprocess

from .clients import GENERATE, expect
from .server import Failure, Server, copy_demo

TEMPLATES = {
    "does-not-compile": "{% for %}",
    "never-ends": "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}x{% endfor %}{% endfor %}{% endfor %}",
    "allocates": "{{ '{:>9999999999}'.format(1) }}",
    "repeats": "{{ 'a' * 10000000000 }}",
    "doubles": "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "nests": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "nests-blocks": "{% if true %}" * 100_000 + "{% endif %}" * 100_000,
    "recurses": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "raises": "{{ raise_exception('roles must alternate') }}",
    "cannot-run": "{{ messages[0].content.frobnicate() }}",
}


def hostile_templates(torture):
    """Ten models with hostile templates beside a good one."""
    models = torture.work / "templates"
    for name, template in TEMPLATES.items():
        (copy_demo(torture.root, models / name) / "base/chat_template.jinja").write_text(template)
    with Server(torture.eka, torture.root, torture.work, ["--model", torture.root / "models/demo", "--models", models]) as server:
        with torture.watching(server):
            chat = {"messages": [{"role": "user", "content": "Please speak slowly."}], "max_tokens": 4}
            answers = [server.post("/v1/chat/completions", chat | {"model": name}) for name in TEMPLATES]
            seen = expect(answers, {400, 404, 413, 422, 501, 503}, "a chat with a hostile template")
            answers = [server.post("/apply-template", {"model": name, "messages": chat["messages"]}) for name in TEMPLATES]
            expect(answers, {400, 404, 413, 422, 501, 503}, "a hostile template applied")
            expect([server.post("/v1/chat/completions", chat | {"model": "demo"})], {200}, "a chat with the good model")
        listed = {model["id"]: model for model in server.get("/v1/models").json["data"]}
        if "does-not-compile" not in json.dumps(listed):
            raise Failure("/v1/models does not name the model whose template does not compile")
    return seen


def strange_files(torture):
    """A FIFO, a socket, a device and a file of 100 GB in the place of each file that is read, beside a good model."""
    models, sockets = torture.work / "strange", []
    for kind in ("fifo", "socket", "device", "huge", "folder"):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json", "config.json"):
            path = copy_demo(torture.root, models / f"{kind}-{name.split('.')[0]}") / "base" / name
            path.unlink(missing_ok=True)
            if kind == "fifo":
                os.mkfifo(path)
            elif kind == "socket":
                sockets.append(bind_unix(path))
            elif kind == "device":
                path.symlink_to("/dev/zero")
            elif kind == "huge":
                with open(path, "wb") as file:
                    file.truncate(100 << 30)
            else:
                path.mkdir()
    with Server(torture.eka, torture.root, torture.work, ["--model", torture.root / "models/demo", "--models", models]) as server, torture.watching(server):
        names = sorted(path.name for path in models.iterdir())
        answers = [server.post(GENERATE, {"model": name, "prompt": "a", "max_new_tokens": 2}) for name in names]
        seen = expect(answers, {400, 404, 422, 503}, "a request to a model of strange files")
        expect([server.post(GENERATE, {"model": "demo", "prompt": "a", "max_new_tokens": 2})], {200}, "the good model")
    return f"{len(names)} models: {seen}"


def bind_unix(path):
    """A socket's file, bound by a short relative name as such paths are limited to 108 bytes."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(path.name)
        return bound
    finally:
        os.chdir(here)


def exported(torture, name):
    """An export of the demonstration model in a separate directory, made once."""
    out = torture.work / "exports" / name
    if not out.exists():
        made = torture.work / "exports/whole"
        if not made.exists():
            demo = torture.root / "models/demo"
            torture.run("export", "--base", demo / "base", "--adapter", demo / "adapter", "--out", made)
        if name != "whole":
            shutil.copytree(made, out)
    return out


def damaged_cache(torture):
    """The cached export is cut short, or one byte of it flipped: it is exported again, and the answers are right."""
    cache = torture.work / "damaged-cache"
    arguments = [f"--set=model.cache_dir={cache}"]
    ask = {"prompt": "The river is long.", "max_new_tokens": 12, "temperature": 0}

    def answer(*more):
        with Server(torture.eka, torture.root, torture.work, [*arguments, *more]) as server:
            said = server.post(GENERATE, ask)
            expect([said], {200}, "a request after the cache was damaged")
            return said.json["text"]

    right = answer()
    data = next(cache.rglob("model.onnx.data"))
    whole = data.stat().st_size
    os.truncate(data, whole // 2)
    if answer() != right:
        raise Failure("another answer from a cache that was cut short")
    data = next(cache.rglob("model.onnx.data"))
    with open(data, "r+b") as file:
        file.seek(whole // 2)
        byte = file.read(1)
        file.seek(whole // 2)
        file.write(bytes([byte[0] ^ 0x55]))
    if answer("--set", "model.verify=hash") != right:
        raise Failure("another answer from a cache of which a byte was flipped")
    return "both repaired"


def damaged_own_export(torture):
    """A user's directory is never written to: the server reports the problem and exits."""
    own = exported(torture, "cut")
    os.truncate(own / "model.onnx.data", 1000)
    command = [torture.eka, "serve", "--port", "0", "--model", own]
    ended = subprocess.run(command, cwd=torture.root, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, env=torture.environment())
    if ended.returncode == 0 or "model.onnx.data" not in ended.stderr:
        raise Failure(f"exit {ended.returncode}: {ended.stderr[-300:]}")
    if (own / "model.onnx.data").stat().st_size != 1000:
        raise Failure("the user's own directory was written to")
    return f"exit {ended.returncode}"


def hugging_face_cache(torture):
    """`snapshots/x/model.onnx` and its data are links into `blobs/`."""
    whole, cache = exported(torture, "whole"), torture.work / "hub/models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots/0123abcd").mkdir(parents=True)
    for number, path in enumerate(sorted(whole.iterdir())):
        shutil.copy(path, cache / "blobs" / f"{number:064x}")
        (cache / "snapshots/0123abcd" / path.name).symlink_to(f"../../blobs/{number:064x}")
    with Server(torture.eka, torture.root, torture.work, ["--model", cache / "snapshots/0123abcd"]) as server:
        return expect([server.post(GENERATE, {"prompt": "a", "max_new_tokens": 2})], {200}, "a request")


def damaged_manifests(torture):
    """Each number of `eka.json` in turn becomes 0, 1, and far too large: refused at load, or served; never a 500."""
    whole, models = exported(torture, "whole"), torture.work / "manifests"
    manifest = json.loads((whole / "eka.json").read_text())
    names = []
    for path in numbers(manifest):
        for value in (0, 1, 10**6):
            name = "-".join(map(str, path)) + f"-{value}"
            folder = models / name
            folder.mkdir(parents=True)
            for file in whole.iterdir():
                if file.name != "eka.json":
                    os.link(file, folder / file.name)
            (folder / "eka.json").write_text(json.dumps(replaced(manifest, path, value)))
            names.append(name)
    with Server(torture.eka, torture.root, torture.work, ["--model", whole, "--models", models]) as server:
        ask = {"prompt": "The river is long. " * 20, "max_new_tokens": 20}
        answers = [server.post(GENERATE, ask | {"model": name}) for name in names]
        seen = expect(answers, {200, 400, 404, 422, 503}, "a damaged manifest")
        expect([server.post(GENERATE, ask | {"model": "whole"})], {200}, "the whole one")
    return f"{len(names)} manifests: {seen}"


def numbers(value, path=()):
    """The places of all numbers within a JSON document, except those of its provenance."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("provenance", "files"):
                yield from numbers(inner, (*path, name))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path


def replaced(value, path, new):
    if not path:
        return new
    return {name: replaced(inner, path[1:], new) if name == path[0] else inner for name, inner in value.items()}


# Item, description, function.
CASES = [
    ("B8", "ten hostile templates", hostile_templates),
    ("B9", "FIFOs, sockets, devices, 100 GB", strange_files),
    ("B10", "a damaged cache", damaged_cache),
    ("B10", "a damaged export of the user's own", damaged_own_export),
    ("B11", "the layout of Hugging Face's cache", hugging_face_cache),
    ("B11", "damaged numbers in eka.json", damaged_manifests),
]
