"""What one client can do with HTTP/2's own means: frames that it writes itself."""

import contextlib
import socket
import struct
import time

from .clients import GENERATE, expect
from .server import Failure

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
ASK = {"prompt": "a", "max_new_tokens": 2}


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header field without compression."""

    def text(word):
        size = len(word)
        return (bytes([size]) if size < 127 else b"\x7f" + varint(size - 127)) + word

    return b"\x00" + text(name) + text(value)


def varint(number):
    out = b""
    while number >= 128:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def head(method, path, *fields):
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"127.0.0.1")]
    return b"".join(literal(name, value) for name, value in [*pseudo, *fields])


POST = head(b"POST", b"/generate-lite", (b"content-type", b"application/json"))
GET = head(b"GET", b"/livez")


@contextlib.contextmanager
def connection(server, settings=b""):
    with server.tcp(20) as client:
        client.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        yield client


def push(client, frames):
    """Sends until the server closes; gives how many were sent."""
    sent = 0
    try:
        for piece in frames:
            client.sendall(piece)
            sent += 1
    except OSError:
        pass
    return sent


def rapid_resets(torture):
    """20,000 requests, each reset at once (CVE-2023-44487)."""
    with connection(torture.server) as client:
        client.settimeout(5)
        streams = range(1, 40_001, 2)
        sent = push(client, (frame(HEADERS, END_HEADERS | END_STREAM, stream, GET) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8)) for stream in streams))
    answer = torture.server.post(GENERATE, ASK)
    return expect([answer], {200}, "a request afterwards") + f", closed after {sent}"


def endless_continuation(torture):
    """A head that never ends: 200 MB of CONTINUATION frames (CVE-2024-27316)."""
    with connection(torture.server) as client:
        client.settimeout(5)
        client.sendall(frame(HEADERS, 0, 1, GET))
        piece = frame(CONTINUATION, 0, 1, literal(b"x-a", b"b" * 16_000))
        sent = push(client, (piece for _ in range(12_500)))
    if sent == 12_500:
        raise Failure("200 MB of one head were read")
    return f"closed after {sent * len(piece) >> 10} KiB"


def floods(torture):
    """200,000 PING and SETTINGS frames on 20 connections, which read no answer."""
    total = 0
    for kind, payload in ((PING, b"eka-ping"), (SETTINGS, b"\x00\x04\x00\x00\xff\xff")):
        for _ in range(10):
            with connection(torture.server) as client:
                client.settimeout(2)
                total += push(client, (frame(kind, 0, 0, payload) * 100 for _ in range(100)))
    return expect([torture.server.post(GENERATE, ASK)], {200}, "a request afterwards") + f", {total * 100} frames"


def stalled_streams(torture):
    """50 connections with 32 bodies each that announce 4 MB, send a window and stop."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            client = stack.enter_context(connection(torture.server))
            client.settimeout(1)
            streams = range(1, 65, 2)
            push(client, (frame(HEADERS, END_HEADERS, stream, POST) for stream in streams))
            push(client, (frame(DATA, 0, stream, b'{"prompt":"' + b"a" * 8_000) for stream in streams))
        answer = torture.server.post(GENERATE, ASK)
        return "others: " + expect([answer], {200, 429, 503}, "a small request meanwhile")


def windows_of_nothing(torture):
    """50 connections that ask for 32 long documents each and make no room for them."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            # SETTINGS_INITIAL_WINDOW_SIZE is 0.
            client = stack.enter_context(connection(torture.server, b"\x00\x04\x00\x00\x00\x00"))
            client.settimeout(1)
            asked = head(b"GET", b"/openapi.json")
            push(client, (frame(HEADERS, END_HEADERS | END_STREAM, stream, asked) for stream in range(1, 65, 2)))
        time.sleep(2)
        return "others: " + expect([torture.server.post(GENERATE, ASK)], {200}, "a small request meanwhile")


def many_connections(torture):
    """1,100 connections that ask once and stay: new ones still get in."""
    clients = []
    try:
        for _ in range(1100):
            try:
                client = torture.server.tcp(5)
            except OSError:
                continue
            clients.append(client)
            with contextlib.suppress(OSError):
                client.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS | END_STREAM, 1, GET))
        answers = [torture.server.get("/livez") for _ in range(20)]
        return expect([*answers, torture.server.post(GENERATE, ASK)], {200}, "a new client")
    finally:
        for client in clients:
            client.close()


def broken_frames(torture):
    """Frames that no client sends: each closes its own connection only."""
    frames = [
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 2, GET),
        frame(HEADERS, END_HEADERS, 1, b"\xff" * 100),
        frame(HEADERS, END_HEADERS, 1, head(b"GET", b"")),
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3,
        frame(WINDOW_UPDATE, 0, 1, b"\x00\x00\x00\x00"),
        frame(SETTINGS, 0, 0, b"12345"),
        frame(GOAWAY, 0, 0, b""),
        frame(99, 255, 3, b"unknown"),
        b"\xff" * 64,
    ]
    for piece in frames:
        with connection(torture.server) as client:
            client.settimeout(2)
            push(client, [piece])
            with contextlib.suppress(OSError, socket.timeout):
                while client.recv(4096):
                    pass
    return expect([torture.server.get("/livez")], {200}, "a probe afterwards")


CASES = [
    ("B14", "HTTP/2: 20,000 streams reset at once", rapid_resets),
    ("B14", "HTTP/2: a head of 200 MB", endless_continuation),
    ("B14", "HTTP/2: floods of PING and SETTINGS", floods),
    ("B14", "HTTP/2: 1,600 stalled bodies", stalled_streams),
    ("B14", "HTTP/2: 1,600 answers without room", windows_of_nothing),
    ("B14", "HTTP/2: 1,100 connections that stay", many_connections),
    ("B14", "HTTP/2: broken frames", broken_frames),
]
