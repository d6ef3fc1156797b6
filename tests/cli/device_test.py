"""--device: what is computed where, what is refused, and what the log says of it. The emulator stands in for a GPU.

usage: device_test.py HADAL MODEL_DIR (a needle model)
"""
import os
import subprocess
import sys
import tempfile
import unittest

HADAL, MODEL = sys.argv[1:3]
# No GPU, whatever this machine has: the CUDA runtime shows none of them.
ENVIRONMENT = {**{key: value for key, value in os.environ.items() if not key.startswith("HADAL_")}, "CUDA_VISIBLE_DEVICES": "-1"}


def generate(*flags):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        prompt.write("The answer lies further down. " * 12)
        prompt.flush()
        return subprocess.run([HADAL, "generate", MODEL, "--prompt-file", prompt.name, "--max-tokens", "6", "--threads", "1", *flags],
                              capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


class Device(unittest.TestCase):
    def test_the_emulated_device_says_what_the_cpu_says(self):
        cpu, emulated = generate("--device", "cpu"), generate("--device", "emulated")
        self.assertEqual((cpu.returncode, emulated.returncode), (0, 0), emulated.stderr)
        self.assertTrue(cpu.stdout)
        self.assertEqual(emulated.stdout, cpu.stdout)
        self.assertIn("event=device chosen=emulated", emulated.stderr)

    def test_without_a_gpu_auto_is_the_cpu_and_says_why(self):
        result = generate()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("event=device chosen=cpu reason=", result.stderr)

    def test_a_gpu_that_is_not_there_is_refused_by_name(self):
        result = generate("--device", "cuda")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("hadal: --device cuda: ", result.stderr)

    def test_what_a_device_does_not_do_is_refused_by_name(self):
        for flags, sentence in [(("--selection", "retrieval"), "no selection but full on a device"),
                                (("--kv-dtype", "int8"), "--kv-dtype bf16 is needed"),
                                (("--weights", "int8"), "--weights bf16 is needed"),
                                (("--warm-memory", "900G"), "--warm-memory 900"),
                                (("--cold-dir", "/tmp/nowhere", "--cold-size", "1G"), "--cold-dir"),
                                (("--hot-memory", "9G"), "--hot-memory 9")]:
            result = generate("--device", "emulated", *flags)
            self.assertEqual((result.returncode, result.stdout), (1, ""), flags)
            self.assertIn("--device emulated: ", result.stderr)
            self.assertIn(sentence, result.stderr)

    def test_another_name_is_a_mistake(self):
        result = generate("--device", "gpu")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--device: 'gpu' is none of auto, cpu, cuda, emulated", result.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
