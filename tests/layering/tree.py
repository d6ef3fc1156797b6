"""The committed files of this tree, or of one that a test makes up."""
import os
import subprocess

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def committed_files():
    """Paths from the root of every file that git tracks and that is still there."""
    listed = subprocess.run(["git", "-c", "safe.directory=*", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True)
    paths = listed.stdout.decode().split("\0")
    return [path for path in paths if path and os.path.isfile(os.path.join(ROOT, path))]


def read_text(path):
    """The text of a file, or None for one that is not text."""
    with open(os.path.join(ROOT, path), "rb") as file:
        data = file.read()
    return None if b"\0" in data else data.decode("utf-8", errors="replace")
