"""The command line as a contract: exit codes, what stands on which stream, and the sentence for each mistake.

usage: cli_test.py HADAL MODEL_DIR (a needle model)
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tools"))
from server import Server  # noqa: E402

HADAL, MODEL = sys.argv[1:3]
COMMANDS = ["serve", "coordinator", "worker", "nodes", "sequences", "drain", "undrain", "cancel", "attention-node", "bench offload", "generate", "bench serve", "bench decode", "bench kernels"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("HADAL_")}


def run(*arguments, environment=None, stdin="", timeout=120):
    return subprocess.run([HADAL, *arguments], capture_output=True, text=True, input=stdin, timeout=timeout,
                          env={**ENVIRONMENT, **(environment or {})})


class Refusals(unittest.TestCase):
    def assert_refused(self, code, sentence, *arguments, environment=None):
        """One line, no more, that holds the sentence; nothing on standard output. Log lines are not counted."""
        result = run(*arguments, environment=environment)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("time=")]
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertIn(sentence, lines[0])


class Usage(Refusals):
    def test_without_a_subcommand_help_goes_to_standard_error(self):
        result = run()
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("hadal serve MODEL_DIR", result.stderr)

    def test_help_lists_every_subcommand(self):
        for arguments in (["help"], ["--help"], ["-h"]):
            result = run(*arguments)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            for command in COMMANDS:
                self.assertIn(f"hadal {command} ", result.stdout)

    def test_help_of_a_subcommand_lists_its_flags_and_their_defaults(self):
        for arguments in (["help", "serve"], ["serve", "--help"], ["serve", "model", "-h"]):
            result = run(*arguments)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            for flag in ("--listen", "--hot-memory", "--kv-dtype", "--selection", "--full-up-to", "--index-memory", "--selection-overrides", "--threads", "--weights", "--max-batch-tokens",
                         "--max-context", "--model-name", "--default-max-tokens", "--api-keys", "--max-body",
                         "--request-timeout", "--queue-timeout", "--stall-timeout", "--keep-alive", "--http-threads", "--max-requests", "--kernels"):
                self.assertIn(flag + " ", result.stdout)
            self.assertIn("(default 127.0.0.1:8000)", result.stdout)
            self.assertIn("HADAL_HOT_MEMORY", result.stdout)

    def test_help_of_a_group_lists_its_members(self):
        result = run("help", "bench")
        self.assertEqual(result.returncode, 0)
        for name in ("bench serve", "bench decode", "bench kernels"):
            self.assertIn(name, result.stdout)
        self.assertNotIn("generate", result.stdout)

    def test_every_line_of_help_fits_a_screen(self):
        for command in COMMANDS:
            for line in run("help", *command.split()).stdout.splitlines():
                self.assertLessEqual(len(line), 150, line)

    def test_version(self):
        result = run("--version")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertRegex(result.stdout, r"^hadal \d+\.\d+\.\d+\n$")

    def test_unknown_subcommands_are_named(self):
        self.assert_refused(2, "there is no subcommand 'sreve'", "sreve")
        self.assert_refused(2, "there is no subcommand 'nothing'", "help", "nothing")
        self.assert_refused(2, "hadal bench: which benchmark?", "bench")
        self.assert_refused(2, "hadal bench: there is no such benchmark", "bench", "speed")

    def test_unknown_flags_are_named_with_the_nearest(self):
        self.assert_refused(2, "unknown flag --thread; did you mean --threads?", "serve", MODEL, "--thread", "2")
        self.assert_refused(2, "see 'hadal help serve'", "serve", MODEL, "--nonsense", "2")

    def test_flags_of_a_cluster_are_not_those_of_one_process(self):
        for flag in ("--etcd", "--cluster"):
            self.assert_refused(2, f"unknown flag {flag}", "serve", MODEL, flag, "1G")

    def test_what_a_node_of_a_cluster_needs_is_named(self):
        for arguments, sentence in (
                (["worker", "--etcd", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"], "--model is missing"),
                (["worker", "--model", MODEL, "--listen", "127.0.0.1:0"], "--etcd is missing"),
                (["worker", "--model", MODEL, "--etcd", "http://127.0.0.1:1"], "--listen is missing"),
                (["coordinator"], "--etcd is missing"),
                (["coordinator", "--etcd", "http://127.0.0.1:1", "--node-id", "a b"], "--node-id 'a b' is not a name"),
                (["coordinator", "--etcd", "http://127.0.0.1:1", "--tls-cert", "x"], "--tls-cert and --tls-key go together"),
                (["drain"], "NODE is missing"), (["cancel"], "SEQUENCE is missing")):
            self.assert_refused(2, sentence, *arguments)
        self.assert_refused(1, "the coordinator at http://127.0.0.1:1 does not answer: connection refused; look at --coordinator",
                            "nodes", "--coordinator", "http://127.0.0.1:1")

    def test_arguments_are_counted(self):
        self.assert_refused(2, "hadal serve: MODEL_DIR is missing", "serve")
        self.assert_refused(2, "unexpected argument 'second'", "serve", MODEL, "second")
        self.assert_refused(2, "hadal generate: --prompt-file is missing", "generate", MODEL)
        self.assert_refused(2, "give either --url or a MODEL_DIR", "bench", "serve")
        self.assert_refused(2, "give either --url or a MODEL_DIR", "bench", "serve", MODEL, "--url", "http://127.0.0.1:1")

    def test_what_an_attention_node_cannot_have_is_refused(self):
        for code, sentence, flags in (
                (2, "--kv-dtype: 'int4' is none of auto, f32, bf16, int8", ["--kv-dtype", "int4"]),
                (2, "--index-memory: 'much' is neither auto nor a size such as 512M or 16G", ["--index-memory", "much"]),
                (2, "--cold-dir and --cold-size go together, and one of them is missing", ["--cold-dir", "/tmp"]),
                (1, "--hot-memory 1.0 PiB does not fit: this process may use", ["--hot-memory", "1P"]),
                (1, "--warm-memory 1.0 PiB does not fit: this process may use", ["--hot-memory", "64M", "--warm-memory", "1P"]),
                (1, "--index-memory 64 MiB is part of the hot memory, 64 MiB, and has to be less",
                 ["--hot-memory", "64M", "--index-memory", "64M"]),
                (1, "--cold-dir /dev/null is no directory",
                 ["--hot-memory", "64M", "--cold-dir", "/dev/null", "--cold-size", "1G"])):
            self.assert_refused(code, sentence, "attention-node", "--etcd", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", *flags)

    def test_values_out_of_range_name_their_flag(self):
        for flag, value, sentence in (
                ("--threads", "two", "--threads: 'two' is not a whole number"),
                ("--threads", "1000000", "--threads: 1000000 is not between 0 and 1024"),
                ("--hot-memory", "4X", "--hot-memory: '4X' is not a size such as 512M or 16G"),
                ("--kv-dtype", "int4", "--kv-dtype: 'int4' is none of f32, bf16, int8"),
                ("--weights", "fp4", "--weights: 'fp4' is none of auto, f32, bf16, int8"),
                ("--selection", "best", "--selection: unknown selection 'best'"),
                ("--kernels", "abacus", "--kernels: kernels 'abacus' are not known; this machine has"),
                ("--max-batch-tokens", "0", "--max-batch-tokens: 0 is not between 1 and"),
                ("--max-requests", "0", "--max-requests: 0 is not between 1 and"),
                ("--log-level", "loud", "--log-level: 'loud' is none of debug, info, warn, error"),
                ("--request-timeout", "soon", "--request-timeout: 'soon' is not a duration such as 2s or 500ms"),
                ("--stall-timeout", "10ms", "--stall-timeout must be at least 1s"),
                ("--keep-alive", "0s", "--keep-alive must be at least 100ms"),
                ("--http-threads", "1000", "--http-threads must be at most 64"),
                ("--max-body", "-1", "--max-body: '-1' is not a size such as 512M or 16G")):
            self.assert_refused(2, sentence, "serve", MODEL, flag, value)
        self.assert_refused(2, "--threads needs a value", "serve", MODEL, "--threads")
        for flag, value, sentence in (("--goodput", "fast", "--goodput: 'fast' is no goal"),
                                      ("--spread", "1", "--spread must be at least 0 and below 1"),
                                      ("--requests", "0", "--requests must be between 1 and")):
            self.assert_refused(2, sentence, "bench", "serve", MODEL, flag, value)
        for flag, value, sentence in (("--depth", "1,x", "--depth: '1,x' is not a list like 0,4096,32768"),
                                      ("--batch", "0", "--batch must be between 1 and")):
            self.assert_refused(2, sentence, "bench", "decode", MODEL, flag, value)
        for flag, value, sentence in (("--trials", "17", "--trials must be between 1 and 16"),
                                      ("--lengths", "100", "--lengths: contexts have at least 1024 tokens"),
                                      ("--steps", "0", "--steps must be between 1 and 4096")):
            self.assert_refused(2, sentence, "bench", "fidelity", MODEL, "--text", "x", flag, value)
        self.assert_refused(2, "--text is missing", "bench", "fidelity", MODEL)

    def test_flags_are_read_from_the_environment(self):
        self.assert_refused(2, "HADAL_THREADS: 'two' is not a whole number", "serve", MODEL, environment={"HADAL_THREADS": "two"})

    def test_the_command_line_goes_before_the_environment(self):
        self.assert_refused(2, "--kv-dtype: 'int4'", "serve", MODEL, "--kv-dtype", "int4", environment={"HADAL_KV_DTYPE": "bf16"})


class ModelDirectories(Refusals):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def copy(self, **changes):
        """The needle model with changes to its config.json."""
        model = os.path.join(self.directory, "model")
        shutil.copytree(MODEL, model)
        path = os.path.join(model, "config.json")
        with open(path) as file:
            config = json.load(file)
        config.update(changes)
        with open(path, "w") as file:
            json.dump(config, file)
        return model

    def test_a_directory_that_is_not_there(self):
        for command in (["serve"], ["generate", "--prompt-file", "/dev/null"], ["bench", "decode"], ["bench", "serve"]):
            self.assert_refused(1, "/nowhere/model", *command, "/nowhere/model")

    def test_a_directory_without_a_model(self):
        self.assert_refused(1, "config.json", "serve", self.directory)

    def test_an_architecture_that_is_not_supported(self):
        self.assert_refused(1, "FalconForCausalLM", "serve", self.copy(architectures=["FalconForCausalLM"]))

    def test_weights_that_do_not_fit_their_config(self):
        self.assert_refused(1, "model.layers.4.", "serve", self.copy(num_hidden_layers=5))

    def test_a_directory_without_a_tokenizer(self):
        model = self.copy()
        os.remove(os.path.join(model, "tokenizer.json"))
        self.assert_refused(1, "tokenizer.json", "serve", model)

    def test_weights_that_were_cut_off(self):
        model = self.copy()
        path = os.path.join(model, "model.safetensors")
        os.truncate(path, os.path.getsize(path) // 2)
        self.assert_refused(1, "model.safetensors", "serve", model)


class Sizes(Refusals):
    def test_more_memory_than_there_is(self):
        self.assert_refused(1, "--hot-memory 1.0 PiB does not fit: this process may use", "serve", MODEL, "--hot-memory", "1P")

    def test_a_context_that_its_memory_cannot_hold(self):
        # 4 layers x 2 KV heads x 128 x (K and V) x 2 bytes: 4 KiB a token, 16,384 tokens in 64 MiB
        self.assert_refused(1, "--max-context 16385 needs 64 MiB of keys and values (4 KiB a token), and there is 64 MiB for them, "
                            "which holds 16384 tokens", "serve", MODEL, "--hot-memory", "64M", "--max-context", "16385")

    def test_a_context_that_the_model_does_not_know(self):
        self.assert_refused(1, "--max-context 2097153 is more than the 2097152 positions", "serve", MODEL, "--max-context", "2097153")


class Serving(Refusals):
    FLAGS = ["--hot-memory", "64M", "--threads", "2"]

    def test_without_keys_only_this_machine_is_served(self):
        self.assert_refused(1, "--api-keys", "serve", MODEL, *self.FLAGS, "--listen", "0.0.0.0:0")

    def test_an_address_that_is_taken(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.assert_refused(1, address, "serve", MODEL, *self.FLAGS, "--listen", address)

    def test_keys_that_are_not_there(self):
        self.assert_refused(1, "/nowhere/keys", "serve", MODEL, *self.FLAGS, "--api-keys", "/nowhere/keys")

    def test_the_effective_configuration_is_logged(self):
        with tempfile.NamedTemporaryFile() as log, Server(HADAL, MODEL, [*self.FLAGS, "--max-context", "5000"], log.name):
            with open(log.name) as file:
                text = file.read()
        configuration = next(line for line in text.splitlines() if "event=configuration" in line)
        for pair in ('hot_memory="64 MiB"', "weights=bf16", "kv=bf16", "threads=2", "selection=auto", "kv_bytes_per_token=4096"):
            self.assertIn(pair, configuration)
        context = next(line for line in text.splitlines() if "event=context" in line)
        self.assertIn("tokens_max=5000", context)
        self.assertRegex(context, r"tokens_fit=1\d{4} ")

    def test_long_requests_are_searched_and_short_ones_are_not(self):
        flags = ["--hot-memory", "256M", "--threads", "2", "--max-context", "8192", "--full-up-to", "3000"]
        with Server(HADAL, MODEL, flags) as server:
            for tokens, selection in ((2999, "full"), (3000, "retrieval")):
                answer = server.post("/v1/completions", {"model": server.model(), "prompt": [6 + i % 900 for i in range(tokens)],
                                                         "max_tokens": 1, "ignore_eos": True})
                self.assertEqual(answer["hadal"]["selection"], selection)

    def test_the_first_signal_finishes_what_runs(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Server(HADAL, MODEL, self.FLAGS) as server:
                events = server.stream("/v1/completions", {"model": server.model(), "prompt": "The", "max_tokens": 300,
                                                           "ignore_eos": True, "stream_options": {"include_usage": True}})
                next(events)
                server.process.send_signal(number)
                usage = [event["usage"] for event in events if event.get("usage")]
                self.assertEqual(usage[-1]["completion_tokens"], 300)
                self.assertEqual(server.process.wait(timeout=30), 0)

    def test_the_second_signal_ends_at_once(self):
        with Server(HADAL, MODEL, self.FLAGS) as server:
            events = server.stream("/v1/completions", {"model": server.model(), "prompt": "The", "max_tokens": 10000,
                                                       "ignore_eos": True})
            next(events)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            self.assertIsNone(server.process.poll())
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(timeout=5), 1)

    def test_the_model_is_called_as_asked(self):
        with Server(HADAL, MODEL, [*self.FLAGS, "--model-name", "a name"]) as server:
            self.assertEqual(server.model(), "a name")
        with Server(HADAL, MODEL + "/", self.FLAGS) as server:
            self.assertEqual(server.model(), os.path.basename(MODEL))


class Generating(Refusals):
    PROMPT = "The magic number of castle is 48213. The river was calm. The magic number of castle is"

    def generate(self, *flags, prompt=PROMPT):
        return run("generate", MODEL, "--prompt-file", "-", "--hot-memory", "64M", "--temperature", "0", *flags, stdin=prompt)

    def test_the_answer_goes_to_standard_output_and_the_figures_to_standard_error(self):
        result = self.generate("--max-tokens", "6")
        self.assertEqual((result.returncode, result.stdout), (0, " 48213"))
        self.assertRegex(result.stderr, r"event=generated prompt_tokens=\d+ output_tokens=6 finish=length ")
        self.assertNotIn("castle", result.stderr)

    def test_a_stop_string_ends_the_answer_before_itself(self):
        result = self.generate("--max-tokens", "20", "--stop", "13.")
        self.assertEqual((result.returncode, result.stdout), (0, " 482"))
        self.assertIn("finish=stop", result.stderr)

    def test_the_same_seed_draws_the_same_answer(self):
        flags = ["--max-tokens", "40", "--temperature", "5", "--ignore-eos"]
        first, again, other = (self.generate(*flags, "--seed", seed).stdout for seed in ("7", "7", "8"))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_a_chat_prompt_goes_through_the_template(self):
        plain, chat = (self.generate("--max-tokens", "1", *flags) for flags in ([], ["--chat"]))
        counts = [int(result.stderr.split("prompt_tokens=")[1].split()[0]) for result in (plain, chat)]
        self.assertEqual(counts[1], counts[0] + 4)  # begin of text, <|user|>, <|end|>, <|assistant|>

    def test_prompts_that_cannot_be_continued(self):
        self.assert_refused(1, "cannot read /nowhere/prompt", "generate", MODEL, "--prompt-file", "/nowhere/prompt")
        self.assert_refused(1, "/dev/null is empty", "generate", MODEL, "--prompt-file", "/dev/null", "--hot-memory", "64M")
        self.assert_refused(2, "--max-tokens must be at least 1", "generate", MODEL, "--prompt-file", "-", "--max-tokens", "0")
        result = self.generate("--max-tokens", "100000")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertRegex(result.stderr.splitlines()[-1], r"^hadal: .*100000")


class Benchmarks(unittest.TestCase):
    def test_decode_reports_every_depth_and_says_what_is_synthetic(self):
        result = run("bench", "decode", MODEL, "--hot-memory", "256M", "--depth", "0,300,1000", "--prefill", "64", "--chunk", "32",
                     "--steps", "2", "--prefill-up-to", "300", "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual([row["depth"] for row in report["decode"]], [0, 300, 1000])
        self.assertEqual([row["synthetic_kv"] for row in report["decode"]], [False, False, True])
        self.assertEqual([row["depth"] for row in report["chunks"]], [300, 1000])
        self.assertEqual([row["tokens"] for row in report["prefill"]], [64])
        self.assertGreater(report["read_bandwidth_bytes_per_s"], 1e8)

    def test_serve_loads_a_server_in_this_process(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "report.json")
            result = run("bench", "serve", MODEL, "--hot-memory", "128M", "--requests", "8", "--rate", "50", "--prompt-tokens", "40",
                         "--output-tokens", "5", "--goodput", "ttft:60000", "--json", path)
            self.assertEqual(result.returncode, 0, result.stderr)
            with open(path) as file:
                report = json.load(file)
        self.assertIn("completed 8, failed 0", result.stdout)
        self.assertEqual((report["completed"], report["failed"]), (8, 0))
        self.assertEqual((report["total_input_tokens"], report["total_output_tokens"]), (320, 40))
        self.assertEqual(report["request_goodput"], report["request_throughput"])
        for name in ("ttft", "tpot", "itl", "e2el"):
            for prefix in ("mean", "median", "std", "p90", "p99"):
                self.assertIn(f"{prefix}_{name}_ms", report)

    def test_serve_says_when_nobody_answers(self):
        result = run("bench", "serve", "--url", "http://127.0.0.1:1")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("http://127.0.0.1:1 does not answer", result.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
