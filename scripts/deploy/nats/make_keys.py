#!/usr/bin/env python3
"""Makes keys and certificates for a trial of the NATS server in this folder, with Python and openssl.

    scripts/deploy/nats/make_keys.py --out /etc/nats --host nats.example.org

Writes a certificate authority (ca.pem), the server's certificate, and for each gateway and node its certificate, its nkey's seed
and a line in keys.conf: TEAM_A_NODE_1 for team-a/node-1. Without names it makes those of accounts.conf. Seeds and private keys are readable by their owner only; give each machine its own and
ca.pem. Existing files are kept. In production your own authority signs, and `nsc` or `nk` makes the nkeys.
"""

import argparse
import base64
import os
import subprocess
import sys
from pathlib import Path

# Account and name (cluster.node_id) of each.
USERS = ["team-a/gateway-1", "team-a/node-1", "team-a/node-2", "team-b/server-1"]

DAYS = "365"
# The first byte of an nkey: U for a user, S for a seed.
USER, SEED = 20 << 3, 18 << 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help="a name of the server; localhost is always one")
    parser.add_argument("names", nargs="*", default=USERS, metavar="ACCOUNT/NAME")
    options = parser.parse_args()
    os.umask(0o077)
    options.out.mkdir(parents=True, exist_ok=True)
    authority(options.out)
    hosts = ["DNS:localhost", "IP:127.0.0.1"] + [f"DNS:{host}" for host in options.host]
    certificate(options.out, "server", "extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=" + ",".join(hosts))
    lines = ["# Public nkeys."]
    for name in options.names:
        (options.out / name).parent.mkdir(exist_ok=True)
        certificate(options.out, name, "extendedKeyUsage=clientAuth")
        lines.append(f"{name.upper().replace('-', '_').replace('/', '_')}: {nkey(options.out / f'{name}.nk')}")
    (options.out / "keys.conf").write_text("\n".join(lines) + "\n")


def openssl(*arguments):
    try:
        return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True).stdout
    except FileNotFoundError:
        sys.exit("make_keys.py: openssl is missing (on Debian and Ubuntu: apt install openssl)")
    except subprocess.CalledProcessError as error:
        sys.exit(f"make_keys.py: openssl {' '.join(map(str, arguments))}: {error.stderr.decode()}")


def authority(out):
    """The authority that signs all certificates of the cluster."""
    if not (out / "ca.pem").exists():
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", out / "ca-key.pem"]
        openssl("req", "-x509", *key, "-out", out / "ca.pem", "-days", DAYS, "-subj", "/CN=eka cluster authority")


def certificate(out, name, extensions):
    """A certificate and its key, signed by the authority."""
    pem, key, request, settings = (out / f"{name}{end}" for end in (".pem", "-key.pem", ".csr", ".ext"))
    if pem.exists():
        return
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    openssl("req", *curve, "-keyout", key, "-out", request, "-subj", f"/CN={name.replace('/', '.')}")
    settings.write_text(extensions + "\n")
    signer = ["-CA", out / "ca.pem", "-CAkey", out / "ca-key.pem", "-CAcreateserial"]
    openssl("x509", "-req", "-in", request, *signer, "-out", pem, "-days", DAYS, "-extfile", settings)
    request.unlink()
    settings.unlink()


def nkey(file):
    """Writes the seed of a new user's nkey, unless the file exists, and returns the public key."""
    if not file.exists():
        # The last 32 bytes of an Ed25519 key in DER are the key itself.
        seed = openssl("genpkey", "-algorithm", "ed25519", "-outform", "DER")[-32:]
        file.write_text(encoded(bytes([SEED | USER >> 5, (USER & 31) << 3]) + seed) + "\n")
    seed = base64.b32decode(padded(file.read_text().strip()))[2:34]
    # PKCS #8 of an Ed25519 key: a constant, then the 32 bytes.
    document = bytes.fromhex("302e020100300506032b657004220420") + seed
    public = subprocess.run(
        ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"], input=document, check=True, capture_output=True
    ).stdout
    return encoded(bytes([USER]) + public[-32:])


def encoded(data):
    """Base 32 of the bytes and their CRC-16 (XMODEM), as nkeys are written."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")


def padded(text):
    return text + "=" * (-len(text) % 8)


if __name__ == "__main__":
    main()
