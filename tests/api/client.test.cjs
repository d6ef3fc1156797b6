// The official JavaScript client against the server at HADAL_TEST_URL.
const assert = require('node:assert');
const { test } = require('node:test');
const OpenAI = require('openai');

const client = new OpenAI({ baseURL: process.env.HADAL_TEST_URL + '/v1', apiKey: 'none', maxRetries: 0, timeout: 120000 });
const sentence = 'The quick brown fox jumps over the lazy dog near the old stone bridge at noon.';
const prompt = sentence + ' And again: The quick brown fox';

async function model() {
  return (await client.models.list()).data[0].id;
}

test('a completion goes on as it must', async () => {
  const answer = await client.completions.create({ model: await model(), prompt, max_tokens: 24, temperature: 0 });
  assert.ok(answer.choices[0].text.startsWith(' jumps over the lazy dog'), answer.choices[0].text);
  assert.strictEqual(answer.choices[0].finish_reason, 'length');
  assert.strictEqual(answer.usage.completion_tokens, 24);
});

test('a completion is streamed, with its usage, and stops', async () => {
  const stream = await client.completions.create({
    model: await model(), prompt, max_tokens: 24, temperature: 0, stop: ' lazy', stream: true, stream_options: { include_usage: true },
  });
  let text = '', usage = null, reason = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.text ?? '';
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  assert.strictEqual(text, ' jumps over the');
  assert.strictEqual(reason, 'stop');
  assert.ok(usage.prompt_tokens > 10);
});

test('a chat is the same whole and streamed', async () => {
  const request = { model: await model(), messages: [{ role: 'user', content: prompt }], max_tokens: 12, temperature: 0 };
  const whole = await client.chat.completions.create(request);
  let text = '';
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) text += chunk.choices[0]?.delta?.content ?? '';
  assert.strictEqual(text, whole.choices[0].message.content);
});

test('three choices of a seed are the same again, with log-probabilities', async () => {
  const request = {
    model: await model(), messages: [{ role: 'user', content: 'Hm' }], n: 3, seed: 7, temperature: 1.5, max_tokens: 6, logprobs: true, top_logprobs: 1,
  };
  const [first, again] = [await client.chat.completions.create(request), await client.chat.completions.create(request)];
  assert.strictEqual(first.choices.length, 3);
  assert.deepStrictEqual(first.choices.map((c) => c.message.content), again.choices.map((c) => c.message.content));
  for (const choice of first.choices) assert.ok(choice.logprobs.content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 1));
});

test('tools are accepted and a forced call is refused by name', async () => {
  const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: {} } } }];
  const request = { model: await model(), messages: [{ role: 'user', content: 'x' }], max_tokens: 2, tools };
  assert.ok(typeof (await client.chat.completions.create(request)).choices[0].message.content === 'string');
  await assert.rejects(client.chat.completions.create({ ...request, tool_choice: 'required' }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.strictEqual(error.param, 'tool_choice');
    return true;
  });
});

test('errors are the client\'s own', async () => {
  await assert.rejects(client.completions.create({ model: 'other', prompt: 'x' }), OpenAI.NotFoundError);
  await assert.rejects(client.completions.create({ model: await model(), prompt: 'x', temperature: 5 }), (error) => {
    assert.strictEqual(error.status, 400);
    assert.match(error.message, /'temperature' must be between 0 and 2, not 5/);
    return true;
  });
});

test('a stream that is given up ends', async () => {
  const stream = await client.completions.create({ model: await model(), prompt, max_tokens: 2000, temperature: 0, ignore_eos: true, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    stream.controller.abort();
    break;
  }
});
