"""Writes the bill of materials and the licences of a release, from cargo's metadata.

  python3 scripts/release/bill.py --target TRIPLE --library FILE --library-version V --sbom FILE --licences DIR

The bill is CycloneDX 1.6 in JSON, the same for the same Cargo.lock and SOURCE_DATE_EPOCH. DIR gets a folder for each crate that
is linked into the program or built for it, with every licence file that the crate brings. A crate without one is
an error unless its licence is among those whose text stands in eka's own LICENSE.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTICES = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
# Those whose text eka's own LICENSE has.
OWN = {"MIT", "Apache-2.0"}


def metadata(target):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def shipped(document):
    """The packages that the program is built from, and what each needs of them: no development dependencies."""
    nodes = {node["id"]: node for node in document["resolve"]["nodes"]}
    needs, todo = {}, [document["resolve"]["root"]]
    while todo:
        package = todo.pop()
        if package in needs:
            continue
        kinds = lambda dependency: {kind["kind"] for kind in dependency["dep_kinds"]}
        needs[package] = sorted(d["pkg"] for d in nodes[package]["deps"] if kinds(d) != {"dev"})
        todo += needs[package]
    return needs


def expression(package):
    """The licence as SPDX writes it today; some crates still write A/B."""
    return re.sub(r"\s*/\s*", " OR ", package["license"] or "") or None


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums):
    entry = {"type": "library", "bom-ref": purl(package), "name": package["name"], "version": package["version"], "scope": "required"}
    if checksum := checksums.get((package["name"], package["version"])):
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if licence := expression(package):
        entry["licenses"] = [{"expression": licence}]
    entry["purl"] = purl(package)
    if package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def bill(document, library, version):
    packages = {package["id"]: package for package in document["packages"]}
    needs, root = shipped(document), document["resolve"]["root"]
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    runtime = {
        "type": "library", "bom-ref": f"pkg:generic/onnxruntime@{version}", "name": "onnxruntime", "version": version, "scope": "required",
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(library.read_bytes()).hexdigest()}],
        "licenses": [{"license": {"id": "MIT"}}], "purl": f"pkg:generic/onnxruntime@{version}",
    }
    components = sorted((component(packages[p], checksums) for p in needs if p != root), key=lambda c: c["bom-ref"]) + [runtime]
    depends = [{"ref": purl(packages[p]), "dependsOn": sorted({purl(packages[d]) for d in of})} for p, of in needs.items()]
    for entry in depends:
        if entry["ref"] == purl(packages[root]):
            entry["dependsOn"].append(runtime["bom-ref"])
    stamp = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", 0)), datetime.UTC)
    eka = {**component(packages[root], checksums), "type": "application"}
    del eka["scope"]
    body = {"components": components, "dependencies": sorted(depends, key=lambda d: d["ref"])}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([eka, body], sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}", "version": 1,
        "metadata": {"timestamp": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": eka}, **body,
    }


def licences(document, out):
    """Copies the licence files; the crates that have none and whose licence eka's LICENSE does not spell out."""
    packages = {package["id"]: package for package in document["packages"]}
    missing = []
    for package in (packages[p] for p in shipped(document) if p != document["resolve"]["root"]):
        source = Path(package["manifest_path"]).parent
        files = [f for f in sorted(source.iterdir()) if NOTICES.match(f.name)]
        if package["license_file"]:
            files.append((source / package["license_file"]).resolve())
        folder = out / f"{package['name']}-{package['version']}"
        folder.mkdir(parents=True)
        (folder / "SPDX").write_text(f"{expression(package)}\n")
        for file in files:
            if file.is_dir():
                shutil.copytree(file, folder / file.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(file, folder / file.name)
        names = set(re.findall(r"[A-Za-z0-9.+-]+", expression(package) or "")) - {"OR", "AND", "WITH"}
        if not files and not names & OWN:
            missing.append(f"{package['name']} {package['version']} ({expression(package)})")
    return missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--library-version", required=True)
    parser.add_argument("--sbom", type=Path, required=True)
    parser.add_argument("--licences", type=Path, required=True)
    args = parser.parse_args()
    document = metadata(args.target)
    args.sbom.write_text(json.dumps(bill(document, args.library, args.library_version), indent=1, ensure_ascii=False) + "\n")
    if missing := licences(document, args.licences):
        sys.exit("bill: no licence text for " + ", ".join(missing))


if __name__ == "__main__":
    main()
