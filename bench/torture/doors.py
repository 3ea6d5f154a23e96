"""Section C: who may come in, and what one learns of another."""

import os
import shutil
import subprocess

from .clients import GENERATE, expect
from .server import Failure, Server

ASK = {"prompt": "a", "max_new_tokens": 2}


def foreign_hosts_and_origins(torture):
    server = torture.server
    refused = [
        server.post(GENERATE, ASK, {"Host": "evil.example"}),
        server.post(GENERATE, ASK, {"Host": f"evil.example:{server.port}"}),
        server.get("/v1/models", {"Host": "evil.example"}),
        server.get("/v1/slot", {"Host": "127.0.0.1.evil.example"}),
        server.post(GENERATE, ASK, {"Origin": "http://evil.example"}),
        server.post(GENERATE, ASK, {"Origin": "null"}),
        server.post(GENERATE, ASK, {"Sec-Fetch-Site": "cross-site"}),
        server.post(GENERATE, ASK, {"Content-Type": "text/plain"}),
        server.post(GENERATE, ASK, {"Content-Type": "application/x-www-form-urlencoded"}),
        server.post("/admin/trim", b"", {"X-Forwarded-For": "203.0.113.1"}),
        server.post("/admin/trim", b"", {"Forwarded": "for=203.0.113.1"}),
        server.post("/admin/trim", b"", {"Host": "evil.example"}),
    ]
    seen = expect(refused, {400, 401, 403, 415, 421}, "a foreign request")
    allowed = [
        server.post(GENERATE, ASK, {"Host": f"localhost:{server.port}"}),
        server.post(GENERATE, ASK, {"Host": f"127.0.0.1:{server.port}", "Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}),
        server.post(GENERATE, ASK, {"Content-Type": "application/json; charset=utf-8"}),
        server.get("/livez", {"Host": "10.0.0.7:8110"}),
    ]
    expect(allowed, {200}, "a request of this machine")
    return seen


def any_origin_is_no_administrator(torture):
    arguments = ["--set", "cors.origins=*"]
    with Server(torture.eka, torture.root, torture.work, arguments) as server:
        page = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        seen = expect([server.post(path, b"{}", page) for path in ("/admin/trim", "/admin/drain")], {401, 403}, "/admin from a page")
        expect([server.post(GENERATE, ASK, page)], {200}, "a generation from a page that may")
        return seen


def prefixes_of_other_keys(torture):
    """What one key's prompt was does not show in another's `cached_tokens`."""
    keys = {"EKA_AUTH_KEYS": "alice:0123456789abcdef0123456789abcdef,bob:fedcba9876543210fedcba9876543210"}
    prompt = "The river is long and the night is dark. " * 4
    with Server(torture.eka, torture.root, torture.work, environment=keys) as server:

        def cached(key, **more):
            answer = server.post(GENERATE, {"prompt": prompt, "max_new_tokens": 2} | more, {"Authorization": f"Bearer {key}"})
            expect([answer], {200}, "a request with a key")
            return answer.json["usage"]["cached_tokens"] if "cached_tokens" in answer.json["usage"] else answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]

        alice, bob = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
        seen = [cached(alice), cached(bob), cached(alice), cached(alice, cache_salt="other")]
    if seen[0] or seen[1] or not seen[2] or seen[3]:
        raise Failure(f"cached tokens of alice, bob, alice again, alice with a salt: {seen}")
    return " ".join(map(str, seen))


def no_home(torture):
    """Without HOME the cache is a folder of this user's own; another user's folder there is not used."""
    temporary = torture.work / "tmp"
    temporary.mkdir()
    environment = {"HOME": None, "XDG_CACHE_HOME": None, "XDG_STATE_HOME": None, "TMPDIR": str(temporary)}
    other = temporary / "eka"
    other.mkdir()
    if os.geteuid() == 0:
        os.chown(other, 65534, 65534)
    with Server(torture.eka, torture.root, torture.work, environment=environment) as server:
        expect([server.post(GENERATE, ASK)], {200}, "a request without HOME")
        made = [path for path in temporary.iterdir() if path.name != "eka"]
        if not made or any(path.stat().st_mode & 0o077 for path in made if path.is_dir()):
            raise Failure(f"the cache is {[(path.name, oct(path.stat().st_mode)) for path in temporary.iterdir()]}")
        if any(other.iterdir()):
            raise Failure("another user's folder was written to")
    return made[0].name


def a_library_in_the_working_directory(torture):
    """`./.onnxruntime` of a strange working directory is never loaded."""
    here = torture.work / "strange-directory"
    (here / ".onnxruntime/cpu").mkdir(parents=True)
    shutil.copy("/bin/true", here / ".onnxruntime/cpu/libonnxruntime.so.1.31.1")
    alone = torture.work / "alone"
    alone.mkdir()
    program = shutil.copy(torture.eka, alone / "eka")
    ended = subprocess.run([program, "doctor"], cwd=here, env=torture.environment(ORT_DYLIB_PATH=None), capture_output=True, text=True, timeout=60, check=False)
    if "strange-directory" in ended.stdout + ended.stderr:
        raise Failure("eka doctor looks for ONNX Runtime in the working directory")
    return "not looked at"


# Item, description, function; the first uses the shared server.
CASES = [("C12", "foreign Host, Origin, content type", foreign_hosts_and_origins)]
OWN_SERVER = [
    ("C12", "cors.origins = * and /admin", any_origin_is_no_administrator),
    ("C13", "cached_tokens across keys", prefixes_of_other_keys),
    ("C14", "no HOME", no_home),
    ("C14", "a library in the working directory", a_library_in_the_working_directory),
]
