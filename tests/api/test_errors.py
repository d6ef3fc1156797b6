import json
import unittest

import openai

from service import MODEL, client, get, post

CHAT = {"messages": [{"role": "user", "content": "x"}]}

# (path, body, status, param, a part of the message)
BAD_INPUT = [
    ("/v1/completions", {"prompt": "x", "temperature": "hot"}, 400, "temperature", "'temperature' must be a number, not a string"),
    ("/v1/completions", {"prompt": "x", "temperature": 3}, 400, "temperature", "'temperature' must be between 0 and 2, not 3"),
    ("/v1/completions", {"prompt": "x", "n": 0}, 400, "n", "'n' must be at least 1, not 0"),
    ("/v1/completions", {"prompt": "x", "stop": ["a"] * 17}, 400, "stop", "'stop' must have at most 16 strings, not 17"),
    ("/v1/completions", {"prompt": "x", "best_of": 2}, 400, "best_of", "'best_of' is not supported other than equal to 'n'"),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "suffix", "'suffix' is not supported"),
    ("/v1/completions", {"prompt": "x", "logit_bias": {"99999999": 1}}, 400, "logit_bias", "which is no token id"),
    ("/v1/completions", {"prompt": [99999999]}, 400, "prompt[0]", "'prompt[0]' must be a token id from 0 to"),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2**31 - 1}, 400, "prompt", "this server holds at most"),
    ("/v1/completions", {}, 400, "prompt", "'prompt' is required"),
    ("/v1/completions", {"prompt": "x", "model": "other"}, 404, "model", "there is no model 'other' here"),
    ("/v1/completions", {"prompt": "x", "hadal": {"selection": "windo"}}, 400, "hadal.selection",
     "unknown selection 'windo'; known: auto, full, window, retrieval"),
    ("/v1/chat/completions", {}, 400, "messages", "'messages' is required"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages", "at least one message"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0].content", "'messages[0].content' is required"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].type",
     "not 'image_url'"),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format", "'response_format' is not supported"),
    ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}, 400, "tool_choice", "'tool_choice' is not supported"),
    ("/v1/chat/completions", {**CHAT, "functions": [{"name": "f"}]}, 400, "functions", "'functions' is not supported"),
    ("/v1/chat/completions", {**CHAT, "modalities": ["audio"]}, 400, "modalities", "'modalities' is not supported"),
    ("/v1/chat/completions", {**CHAT, "stream_options": {}}, 400, "stream_options", "where 'stream' is true"),
    ("/v1/chat/completions", {**CHAT, "chat_template": "{{ raise_exception('no way') }}"}, 400, "messages", "no way"),
    ("/v1/completions", b'{"prompt": nope}', 400, None, "the body is not JSON: line 1, column 15 (byte 15)"),
    ("/v1/completions", b'{"prompt": "x", "prompt": "y"}', 400, None, "the same key twice"),
    ("/v1/completions", b'{"prompt": "\xff"}', 400, None, "the body is not UTF-8"),
    ("/v1/completions", b'{"a":' + b"[" * 200, 400, None, "nested more than 100 levels deep"),
    ("/v1/completions", b"", 400, None, "the request has no body"),
    ("/v1/completions", json.dumps({"prompt": "x" * (1 << 20)}).encode(), 413, None, "larger than 1048576 bytes"),
    ("/v1/nothing", {}, 404, None, "there is nothing at /v1/nothing"),
    ("/v1/models", {}, 405, None, "/v1/models takes GET, not POST"),
    ("/detokenize", {"tokens": ["x"]}, 400, "tokens[0]", "'tokens[0]' must be a token id, not a string"),
]


class Errors(unittest.TestCase):
    def test_bad_input_is_refused_with_its_message(self):
        for path, body, status, param, message in BAD_INPUT:
            with self.subTest(path=path, body=str(body)[:120]):
                found, _, answer = post(path, body)
                self.assertEqual(found, status, answer)
                self.assertIn(message, answer["error"]["message"])
                if param is not None:
                    self.assertEqual(answer["error"]["param"], param)
                self.assertTrue(answer["error"]["type"])

    def test_the_client_raises_its_own_errors(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt="x", temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        self.assertEqual(caught.exception.code, "out_of_range")
        with self.assertRaises(openai.NotFoundError):
            client.chat.completions.create(model="other", **CHAT)
        with self.assertRaises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL, stream=True, n=0, **CHAT)

    def test_the_rest_answers(self):
        self.assertEqual(client.models.retrieve(MODEL).id, MODEL)
        for path in ("/health", "/ready", "/version"):
            self.assertEqual(get(path)[0], 200)
        status, metrics = get("/metrics")
        self.assertEqual(status, 200)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries", "prefix_cache_hits",
                     "num_preemptions", "prompt_tokens_total", "generation_tokens_total", "iteration_tokens_total", "request_success_total",
                     "request_prompt_tokens", "request_generation_tokens", "request_params_n", "request_params_max_tokens",
                     "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                     "request_inference_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds", "cache_config_info"):
            self.assertIn("hadal:" + name, metrics)

    def test_a_request_id_comes_back(self):
        _, headers, answer = post("/v1/completions", {"prompt": "x", "max_tokens": 1}, {"X-Request-Id": "abc-1"})
        self.assertEqual(headers["X-Request-Id"], "abc-1")
        self.assertEqual(answer["id"], "cmpl-abc-1")


if __name__ == "__main__":
    unittest.main()
