import unittest

from service import MODEL, PROMPT, SENTENCE, client, post

WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather of a city.",
                                            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
# The needle model's own template knows no tools; this one shows what it was given.
TOOL_TEMPLATE = ("{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
                 "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.city }}){% endfor %}{% endfor %}")


def chat(**options):
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0, **options})


def rendered(**body):
    """What a chat becomes, by way of its tokens."""
    status, _, tokens = post("/tokenize", {"chat_template": TOOL_TEMPLATE, **body})
    assert status == 200, tokens
    return post("/detokenize", {"tokens": tokens["tokens"]})[2]["prompt"]


class Chat(unittest.TestCase):
    def test_a_chat_is_answered(self):
        answer = chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertIsInstance(answer.choices[0].message.content, str)
        self.assertLessEqual(answer.usage.completion_tokens, 12)
        self.assertGreater(answer.usage.prompt_tokens, 10)

    def test_a_stream_gives_the_same_text(self):
        whole = chat().choices[0]
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        choices = [c.choices[0] for c in chunks if c.choices]
        self.assertEqual(choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.delta.content or "" for c in choices), whole.message.content)
        self.assertEqual(choices[-1].finish_reason, whole.finish_reason)
        self.assertGreater(chunks[-1].usage.prompt_tokens, 10)
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_a_message_is_continued(self):
        messages = [{"role": "user", "content": SENTENCE}, {"role": "assistant", "content": "The quick brown fox"}]
        answer = chat(messages=messages, extra_body={"continue_final_message": True})
        self.assertTrue(answer.choices[0].message.content.startswith(" jumps over the lazy dog"), answer.choices[0].message.content)

    def test_parts_of_text_are_one_text(self):
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        self.assertEqual(rendered(messages=[{"role": "user", "content": parts}]), "<user>one\ntwo")

    def test_choices_and_seed(self):
        first, again = (chat(messages=[{"role": "user", "content": "Hm"}], n=3, seed=5, temperature=1.5) for _ in range(2))
        self.assertEqual(len(first.choices), 3)
        self.assertEqual([c.message.content for c in first.choices], [c.message.content for c in again.choices])

    def test_log_probabilities_have_bytes(self):
        answer = chat(logprobs=True, top_logprobs=2, max_tokens=4).choices[0]
        content = answer.logprobs.content
        self.assertEqual(b"".join(bytes(t.bytes) for t in content).decode(errors="replace"), answer.message.content)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 2)
            self.assertLessEqual(token.logprob, 0)

    def test_tools_reach_the_template(self):
        messages = [{"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": None,
                     "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kiel"}'}}]},
                    {"role": "tool", "tool_call_id": "1", "content": "rain"}]
        expected = "[weather]<user>Hi<assistant>(weather Kiel)<tool>rain"
        self.assertEqual(rendered(messages=messages, tools=[WEATHER]), expected)
        self.assertEqual(rendered(messages=messages, tools=[WEATHER], tool_choice="none"), expected.removeprefix("[weather]"))
        answer = chat(messages=messages, tools=[WEATHER], tool_choice="auto", extra_body={"chat_template": TOOL_TEMPLATE})
        self.assertIsInstance(answer.choices[0].message.content, str)


if __name__ == "__main__":
    unittest.main()
