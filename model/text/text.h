/* text.h - text to token ids and back, and chat prompts, exactly as Hugging Face does them.
 *
 * A thin C face over the Rust crates `tokenizers` (tokenizer.json) and `minijinja` (chat templates with Python's
 * semantics), linked as one static library. Opened once, then read only.
 * Threads: every call on an open text_model may be made from any thread at once. text_stream belongs to one thread. */
#ifndef MODEL_TEXT_H
#define MODEL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct text_model text_model;

/* Opens tokenizer.json (required), tokenizer_config.json and chat_template.jinja (or .json) of a model directory. The
 * error names the file and what is wrong with it. A directory without a chat template opens; text_render_chat then says
 * so. */
hd_status text_model_open(const char *model_directory, text_model **model, hd_error *error);
void text_model_close(text_model *model); /* accepts NULL */

uint32_t text_vocabulary_size(const text_model *model); /* added tokens included */
bool text_has_chat_template(const text_model *model);
/* bos/eos of tokenizer_config.json by id; false when it names none. */
bool text_bos_id(const text_model *model, uint32_t *id);
bool text_eos_id(const text_model *model, uint32_t *id);

/* UTF-8 text -> ids. add_special_tokens as in Hugging Face's encode (the post-processor's bos and so on). *ids is
 * malloc'ed for the caller (free). HD_INVALID for text that is not UTF-8. */
hd_status text_encode(const text_model *model, const char *text, size_t text_bytes, bool add_special_tokens,
                      uint32_t **ids, size_t *id_count, hd_error *error);

/* ids -> UTF-8 text, malloc'ed and zero terminated. Ids outside the vocabulary give HD_INVALID naming the id. */
hd_status text_decode(const text_model *model, const uint32_t *ids, size_t id_count, bool skip_special_tokens,
                      char **text, size_t *text_bytes, hd_error *error);

/* The vocabulary's own spelling of one token, as OpenAI's logprobs want it: its text (possibly with U+FFFD) and its raw
 * bytes. Both malloc'ed. */
hd_status text_token(const text_model *model, uint32_t id, char **text, unsigned char **bytes, size_t *byte_count);

/* Renders the chat template. context_json is an object with what the template may read: messages, tools, documents,
 * add_generation_prompt, and any chat_template_kwargs; bos_token, eos_token and the other special tokens are added
 * here. template_override may be NULL. The text is malloc'ed. A raise_exception of the template comes back as
 * HD_INVALID with its message. */
hd_status text_render_chat(const text_model *model, const char *template_override, const char *context_json,
                           size_t context_bytes, char **text, size_t *text_bytes, hd_error *error);

/* Incremental decoding that never splits a character: feed ids, take the text that is complete. What text_stream_finish
 * gives ends with U+FFFD for bytes that never became a character; concatenated, the pieces equal text_decode of all
 * ids. */
typedef struct text_stream text_stream;
hd_status text_stream_open(const text_model *model, bool skip_special_tokens, text_stream **stream);
void text_stream_close(text_stream *stream);
/* *piece is borrowed until the next call; it may be empty. */
hd_status text_stream_push(text_stream *stream, uint32_t id, const char **piece, size_t *piece_bytes);
hd_status text_stream_finish(text_stream *stream, const char **piece, size_t *piece_bytes);

#endif
