"""Hosts for the processes of one script: network namespaces on a bridge, or loopback addresses where those are not permitted.

The bridge lies in a network namespace of the script's own, and each host's namespace has no name: nothing of the machine's own
network is touched, and all of it vanishes with the processes that are in it, however the script ends. A user without root gets
them through a user namespace, where the system has those.
"""
import ctypes
import os
import signal
import socket
import subprocess
import sys

INSIDE = "HADAL_HOSTS_INSIDE"
UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
BRIDGE = "ip link set lo up && ip link add hosts type bridge && ip addr add 10.77.0.1/24 dev hosts && ip link set hosts up"
TRIAL = f"{BRIDGE} && ip link add trial type veth peer name other && unshare --net true"
# Its first line says that the namespace is there, so that the other end of its cable can be put into it.
HOST = ('echo; read -r address; ip link set lo up && ip addr add "$address/24" dev eth0 && ip link set eth0 up || exit 1; '
        'log=$1; shift; exec "$@" >>"$log" 2>&1')
PR_SET_PDEATHSIG = 1


def enter():
    """The script begins again within a network namespace of its own, or goes on here where there can be none. True: within."""
    if os.environ.get(INSIDE):
        subprocess.run(["sh", "-c", BRIDGE], check=True)
        return True
    try:
        may = subprocess.run([*UNSHARE, "sh", "-c", TRIAL], capture_output=True).returncode == 0
    except OSError:
        may = False
    if may:
        os.environ[INSIDE] = "1"
        os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, *sys.argv])
    return False


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """One process at an address of its own; its output goes to log."""

    def __init__(self, name, number, is_namespace, log):
        self.name, self.is_namespace, self.log = name, is_namespace, log
        self.address = f"10.77.0.{number + 1}" if is_namespace else f"127.0.0.{number + 1}"
        self.cable = f"host{number}"
        self.process = None

    def port(self, wanted):
        """That port in a namespace; on a loopback address, which others may use as well, a free one."""
        if self.is_namespace:
            return wanted
        with socket.socket() as listener:
            listener.bind((self.address, 0))
            return listener.getsockname()[1]

    def start(self, command):
        if not self.is_namespace:
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
            return
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(["unshare", "--net", "sh", "-c", HOST, "sh", self.log, *command], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, preexec_fn=die_with_parent)
        self.process.stdout.readline()
        cable = ["ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.process.pid)]
        subprocess.run(cable, check=True)
        subprocess.run(["ip", "link", "set", self.cable, "master", "hosts", "up"], check=True)
        self.process.stdin.write(self.address.encode() + b"\n")
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self):
        """kill -9"""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def has_ended(self):
        return self.process.poll() is not None

    def text(self):
        with open(self.log, errors="replace") as log:
            return log.read()
