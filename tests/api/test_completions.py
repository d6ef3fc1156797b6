import unittest

from service import ANSWER, MODEL, PROMPT, client


def complete(**options):
    return client.completions.create(**{"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **options})


class Completions(unittest.TestCase):
    def test_the_model_goes_on_as_it_must(self):
        answer = complete()
        self.assertEqual(answer.object, "text_completion")
        self.assertEqual(answer.model, MODEL)
        self.assertTrue(answer.choices[0].text.startswith(ANSWER), answer.choices[0].text)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 24)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 24)
        self.assertEqual(answer.model_extra["hadal"]["selection"], "full")

    def test_a_stream_gives_the_same_text_and_then_the_usage(self):
        whole = complete()
        chunks = list(complete(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].text for c in chunks if c.choices), whole.choices[0].text)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 24)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "length")

    def test_prompts_come_as_strings_and_as_ids(self):
        ids = client.post("/../tokenize", body={"prompt": PROMPT}, cast_to=object)["tokens"]
        text = complete().choices[0].text
        self.assertEqual(complete(prompt=ids).choices[0].text, text)
        several = complete(prompt=[PROMPT, "Hello there"])
        self.assertEqual([c.index for c in several.choices], [0, 1])
        self.assertEqual(several.choices[0].text, text)
        self.assertEqual(complete(prompt=[ids, ids[:9]]).choices[0].text, text)

    def test_a_stop_string_ends_the_text_and_is_never_shown(self):
        for stop in (" lazy", [" lazy", " never there"]):
            whole = complete(stop=stop)
            self.assertEqual(whole.choices[0].text, " jumps over the")
            self.assertEqual(whole.choices[0].finish_reason, "stop")
            streamed = "".join(c.choices[0].text for c in complete(stop=stop, stream=True))
            self.assertEqual(streamed, " jumps over the")

    def test_three_choices_of_a_seed_are_the_same_again(self):
        texts = []  # nothing in this prompt comes twice, so the model is in doubt and the choices differ
        for _ in range(2):
            answer = complete(prompt="zz top", n=3, seed=11, temperature=2)
            self.assertEqual([c.index for c in answer.choices], [0, 1, 2])
            texts.append([c.text for c in answer.choices])
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(len(set(texts[0])), 3)
        streamed = ["", "", ""]
        for chunk in complete(prompt="zz top", n=3, seed=11, temperature=2, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        self.assertEqual(streamed, texts[0])

    def test_log_probabilities_belong_to_the_text(self):
        answer = complete(logprobs=3, max_tokens=5).choices[0]
        logprobs = answer.logprobs
        self.assertEqual("".join(logprobs.tokens), answer.text)
        self.assertEqual(len(logprobs.token_logprobs), 5)
        for token, logprob, top, offset in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset):
            self.assertLessEqual(logprob, 0)
            self.assertEqual(max(top.values()), logprob)  # drawn greedily
            self.assertTrue(answer.text[offset:].startswith(token))

    def test_an_echo_shows_the_prompt_and_its_log_probabilities(self):
        answer = complete(echo=True, logprobs=1, max_tokens=2).choices[0]
        self.assertTrue(answer.text.startswith(PROMPT))
        self.assertIsNone(answer.logprobs.token_logprobs[0])
        self.assertTrue(all(value <= 0 for value in answer.logprobs.token_logprobs[1:]))
        alone = complete(echo=True, logprobs=1, max_tokens=0)
        self.assertEqual(alone.choices[0].text, PROMPT)
        self.assertEqual(alone.usage.completion_tokens, 0)

    def test_a_prompt_seen_before_is_found_in_the_cache(self):
        long = " ".join(f"item {i}" for i in range(200))
        complete(prompt=long, max_tokens=1)
        again = complete(prompt=long, max_tokens=1)
        self.assertGreaterEqual(again.usage.prompt_tokens_details.cached_tokens, 128)
        client.post("/../reset_prefix_cache", cast_to=object)
        fresh = complete(prompt=long, max_tokens=1)
        self.assertEqual(fresh.usage.prompt_tokens_details.cached_tokens, 0)


if __name__ == "__main__":
    unittest.main()
