"""Documents for the needle model, drawn by needle/make_document.py."""
import json
import os
import subprocess
import sys

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "needle", "make_document.py")


def draw(model, tokens, needles=1, seed=None, alike=False):
    """(text, needles): each needle has word, number, position and the prompt that asks for it behind the text."""
    command = [sys.executable, SCRIPT, model, "--tokens", str(tokens), "--needles", str(needles)]
    if seed is not None:
        command += ["--seed", str(seed)]
    if alike:
        command.append("--alike")
    drawn = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return drawn["document"], drawn["needles"]
