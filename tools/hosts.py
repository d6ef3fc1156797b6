"""Hosts for the processes of one script: network namespaces on a bridge, or loopback addresses where those are not permitted.

The bridge lies in a network namespace of the script's own, and each host's namespace has no name: nothing of the machine's own
network is touched, and all of it vanishes with the processes that are in it, however the script ends. A user without root gets
them through a user namespace, where the system has those.

Hosts can be cut off from each other without a word (Host.cut), and have slow and lossy cables: `tc netem`, or, where the kernel
has none, this file itself, started as a process that hands frames on late or not at all.
"""
import collections
import ctypes
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time

INSIDE = "HADAL_HOSTS_INSIDE"
UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
BRIDGE = "ip link set lo up && ip link add hosts type bridge && ip addr add 10.77.0.1/24 dev hosts && ip link set hosts up"
TRIAL = f"{BRIDGE} && ip link add trial type veth peer name other && unshare --net true"
NOBODY = "02:00:00:00:00:99"  # nobody's address on the bridge: what is sent there is lost
PR_SET_PDEATHSIG = 1
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


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


def free_port(address):
    with socket.socket() as listener:
        listener.bind((address, 0))
        return listener.getsockname()[1]


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class Host:
    """An address of its own, and the process that start() gives it, whose output goes to log.

    delay_ms and loss (a share) are those of its cable, each way. Only a host in a namespace can have them, or be cut off."""

    def __init__(self, name, number, is_namespace, log=os.devnull, delay_ms=0, loss=0):
        self.name, self.is_namespace, self.log = name, is_namespace, log
        self.address = f"10.77.0.{number + 1}" if is_namespace else f"127.0.0.{number + 1}"
        self.cable = f"host{number}"
        self.process, self.holder, self.relay = None, None, None
        if is_namespace:
            self._open_namespace()
            self._lay_cable(delay_ms, loss)
            ip("link", "set", self.cable, "master", "hosts", "up")
            self.run("ip", "link", "set", "lo", "up")
            self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
            self.run("ip", "link", "set", "eth0", "up")

    def _open_namespace(self):
        """A process that does nothing keeps it, so that others come and go in it."""
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        self.holder.stdout.readline()  # it is there
        self.holder.stdout.close()

    def _lay_cable(self, delay_ms, loss):
        self._lay_veth()
        if delay_ms == 0 and loss == 0:
            return
        netem = ["netem", "delay", f"{delay_ms}ms", "loss", f"{loss:%}"]
        tried = subprocess.run(["tc", "qdisc", "add", "dev", self.cable, "root", *netem], capture_output=True)
        if tried.returncode == 0:
            self.run("tc", "qdisc", "add", "dev", "eth0", "root", *netem)
            return
        ip("link", "delete", self.cable)
        self._lay_relay(delay_ms, loss)

    def _lay_veth(self):
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))

    def _lay_relay(self, delay_ms, loss):
        other = self.cable + "in"
        ends = [open_tap(self.cable), open_tap(other)]
        ip("link", "set", other, "netns", str(self.holder.pid), "name", "eth0")
        self.relay = subprocess.Popen([sys.executable, os.path.abspath(__file__), *map(str, ends), str(delay_ms), str(loss)],
                                      pass_fds=ends, preexec_fn=die_with_parent)
        for end in ends:
            os.close(end)

    def inside(self, command):
        """The command line that runs it on this host, as the same process."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *command] if self.is_namespace else list(command)

    def run(self, *command):
        subprocess.run(self.inside(command), check=True)

    def cut(self, other):
        """From now on nothing that is sent from one to the other arrives, and nobody is told."""
        self.run("ip", "neighbour", "replace", other.address, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0")
        other.run("ip", "neighbour", "replace", self.address, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0")

    def mend(self, other):
        self.run("ip", "neighbour", "delete", other.address, "dev", "eth0")
        other.run("ip", "neighbour", "delete", self.address, "dev", "eth0")

    def port(self, wanted):
        """That port in a namespace; on a loopback address, which others may use as well, a free one."""
        return wanted if self.is_namespace else free_port(self.address)

    def start(self, command):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.inside(command), stdout=log, stderr=log, preexec_fn=die_with_parent)

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

    def close(self):
        """With its process; the number may be another host's then."""
        self.kill()
        for process in (self.relay, self.holder):
            if process is not None:
                process.kill()
                process.wait()
        if self.is_namespace:  # it may be gone with the namespace, or with the relay, or be about to be
            subprocess.run(["ip", "link", "delete", self.cable], capture_output=True)


def open_tap(name):
    """The descriptor of a network device whose frames are read and written here."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def relay_frames(ends, delay_s, loss):
    """Hands frames from each end to the other, until it is killed."""
    waiting = {end: collections.deque() for end in ends}  # (when, frame), for that end
    other = dict(zip(ends, reversed(ends)))
    while True:
        due = min((frames[0][0] for frames in waiting.values() if frames), default=None)
        readable, _, _ = select.select(ends, [], [], None if due is None else max(0, due - time.monotonic()))
        now = time.monotonic()
        for end in readable:
            frame = os.read(end, 1 << 16)
            if random.random() >= loss:
                waiting[other[end]].append((now + delay_s, frame))
        for end, frames in waiting.items():
            while frames and frames[0][0] <= now:
                try:
                    os.write(end, frames.popleft()[1])
                except OSError:
                    pass  # full, or not up yet: lost


if __name__ == "__main__":
    relay_frames([int(sys.argv[1]), int(sys.argv[2])], float(sys.argv[3]) / 1e3, float(sys.argv[4]))
