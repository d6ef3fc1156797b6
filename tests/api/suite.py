"""suite.py BINARY MODEL_DIR - serves the model and runs the Python tests here, then the JavaScript ones, against it."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(ROOT, "tools")]

from server import Server  # noqa: E402


def main():
    binary, model = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "serve.log")
        with Server(os.path.abspath(binary), os.path.abspath(model), ["--max-body", "1M"], log) as server:
            os.environ["HADAL_TEST_URL"] = f"http://127.0.0.1:{server.port}"
            tests = unittest.defaultTestLoader.discover(HERE, pattern="test_*.py")
            failed = not unittest.TextTestRunner(verbosity=2).run(tests).wasSuccessful()
            environment = {**os.environ, "NODE_PATH": os.path.join(ROOT, "build", "node", "node_modules")}
            node = subprocess.run(["node", "--test", os.path.join(HERE, "client.test.cjs")], env=environment, check=False)
            failed = failed or node.returncode != 0
        if failed:
            with open(log, errors="replace") as text:
                print(text.read()[-4000:], file=sys.stderr)
        with open(log, errors="replace") as text:
            if "Sanitizer" in text.read():
                print("the server's log holds a sanitizer's report", file=sys.stderr)
                failed = True
    sys.exit(1 if failed or server.process.returncode != 0 else 0)


if __name__ == "__main__":
    main()
