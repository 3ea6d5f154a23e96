"""The ways into a server: HTTP/1 over TCP, HTTP/2 by prior knowledge, HTTP/1 over a Unix socket. Each makes one request."""

import http.client
import socket
import subprocess

# What curl ends with when the server closed the connection before it had read the whole body: the answer may still be there.
SEND_FAILED = 55


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1 over a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def over_http1(connection, method, path, body, headers):
    """Status, headers and body over a connection of `http.client`."""
    try:
        try:
            connection.request(method, path, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before the whole body was sent; the answer is there to be read.
            pass
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def over_http2(port, method, path, body, headers, timeout):
    """Status, headers and body over HTTP/2, by curl."""
    command = ["curl", "--silent", "--http2-prior-knowledge", "--max-time", str(timeout), "--request", method, "--include"]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    if body is not None:
        command += ["--data-binary", "@-", "--header", "Expect:"]
    ended = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], input=body, capture_output=True, check=False)
    head, _, rest = ended.stdout.partition(b"\r\n\r\n")
    if ended.returncode not in (0, SEND_FAILED) or not head.startswith(b"HTTP/2 "):
        raise ConnectionError(f"curl ended with {ended.returncode}: {head[:80]!r}")
    line, *fields = head.decode(errors="replace").split("\r\n")
    return int(line.split()[1]), dict(field.split(": ", 1) for field in fields if ": " in field), rest
