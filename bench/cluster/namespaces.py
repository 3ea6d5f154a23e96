"""Network namespaces, one for each machine of a cluster, on a bridge: a cable that can be pulled."""

import itertools
import subprocess
import sys
import os


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True)


class Namespaces:
    """Machines on the bridge `ekabr`, which is 10.79.0.1 for the NATS server and the clients."""

    def __init__(self):
        if os.geteuid() != 0:
            sys.exit("--cut needs root: network namespaces")
        self.numbers, self.machines = itertools.count(2), {}
        self.remove()
        ip("link", "add", "ekabr", "type", "bridge")
        ip("address", "add", "10.79.0.1/24", "dev", "ekabr")
        ip("link", "set", "ekabr", "up")

    def add(self, name):
        """A machine; its address, and the beginning of a command that runs on it."""
        number = next(self.numbers)
        space, outside, inside = f"eka{number}", f"ekav{number}", f"ekaw{number}"
        ip("netns", "add", space)
        ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", space)
        ip("link", "set", outside, "master", "ekabr")
        ip("link", "set", outside, "up")
        ip("-n", space, "address", "add", f"10.79.0.{number}/24", "dev", inside)
        ip("-n", space, "link", "set", inside, "up")
        ip("-n", space, "link", "set", "lo", "up")
        self.machines[name] = outside
        return f"10.79.0.{number}", ["ip", "netns", "exec", space]

    def cut(self, name):
        """Pulls the cable: packets are lost, and nothing is told."""
        ip("link", "set", self.machines[name], "nomaster")

    def join(self, name):
        ip("link", "set", self.machines[name], "master", "ekabr")

    def remove(self):
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        for line in listed.splitlines():
            if line.startswith("eka"):
                subprocess.run(["ip", "netns", "delete", line.split()[0]], capture_output=True)
        subprocess.run(["ip", "link", "delete", "ekabr"], capture_output=True)
