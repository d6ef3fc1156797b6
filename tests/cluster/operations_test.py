"""Runs the commands of docs/operations.md as they stand, on five hosts: every one of them has to do what the page says.

usage: operations_test.py HADAL [-v]

A command is a line that begins with `    host-N$ `. Where network namespaces are not permitted the test says so and ends with 77.
"""
import contextlib
import ctypes
import glob
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import ROOT, hosts, make_model  # noqa: E402

HADAL = os.path.abspath(sys.argv[1])
HOSTS = 5
COMMAND_S = 60
PR_SET_CHILD_SUBREAPER = 36


def commands():
    with open(os.path.join(ROOT, "docs", "operations.md")) as page:
        return [(int(number), command) for number, command in re.findall(r"^    host-(\d)\$ (.*)$", page.read(), re.MULTILINE)]


def read_pids(directory):
    for path in glob.glob(os.path.join(directory, "host-*", "*pid")):
        with open(path) as file, contextlib.suppress(ValueError):
            yield int(file.read())


def reap(directory, is_over):
    """What the page starts in the background is this process' to bury."""
    while not is_over.wait(0.1):
        for pid in read_pids(directory):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


class Page:
    def __init__(self, directory):
        self.directory = directory
        self.hosts = [hosts.Host(f"host-{i + 1}", i + 1, True) for i in range(HOSTS)]
        os.mkdir(os.path.join(directory, "bin"))
        os.symlink(HADAL, os.path.join(directory, "bin", "hadal"))
        self.environment = {**os.environ, "PATH": os.path.join(directory, "bin") + ":" + os.environ["PATH"],
                            "MODEL": make_model(os.path.join(directory, "golden")), "KV_MEMORY": "64M",
                            "HADAL_API_KEY": secrets.token_hex(16), "ETCD": f"http://{self.hosts[0].address}:2379",
                            **{f"HOST{i + 1}": host.address for i, host in enumerate(self.hosts)}}
        for host in self.hosts:
            os.mkdir(os.path.join(directory, host.name))

    def run(self, number, command):
        host = self.hosts[number - 1]
        output = os.path.join(self.directory, "output")
        with open(output, "w+") as file:  # a pipe would be held open by what stays in the background
            result = subprocess.run(host.inside(["sh", "-c", command]), cwd=os.path.join(self.directory, host.name),
                                    env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=COMMAND_S)
            file.seek(0)
            said = file.read()
        if "-v" in sys.argv:
            print(f"{host.name}$ {command}\n{said}", flush=True)
        is_right = result.returncode == 0 and ("/v1/completions" not in command or '"choices"' in said)
        if not is_right:
            logs = [f"-- {path}\n{open(path).read()[-1500:]}" for path in glob.glob(os.path.join(self.directory, "host-*", "log"))]
            raise SystemExit("\n".join([f"{host.name}$ {command}", f"ended with {result.returncode} and said: {said}", *logs]))

    def close(self):
        for pid in read_pids(self.directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for host in self.hosts:
            host.close()


def main():
    if not hosts.enter():
        print("network namespaces are not permitted here: nothing was tested")
        sys.exit(77)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    directory, is_over = tempfile.mkdtemp(prefix="hadal-operations-"), threading.Event()
    reaper = threading.Thread(target=reap, args=(directory, is_over))
    reaper.start()
    page = Page(directory)
    try:
        for number, command in commands():
            page.run(number, command)
        print(f"{len(commands())} commands")
    finally:
        page.close()
        is_over.set()
        reaper.join()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
