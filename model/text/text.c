/* text.c - the crate's answers as the project's statuses. Decoding is text_stream's, so that a stream's pieces and the
 * text of all ids are the same by construction. */
#include "model/text/text.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/text/text_model.h"

static hd_status status_of(text_native_status status) {
    switch (status) {
    case TEXT_NATIVE_OK: return HD_OK;
    case TEXT_NATIVE_INVALID: return HD_INVALID;
    case TEXT_NATIVE_UNSUPPORTED: return HD_UNSUPPORTED;
    case TEXT_NATIVE_CORRUPT: return HD_CORRUPT;
    case TEXT_NATIVE_NOT_FOUND: return HD_NOT_FOUND;
    case TEXT_NATIVE_IO: return HD_IO;
    case TEXT_NATIVE_NO_MEMORY: return HD_NO_MEMORY;
    case TEXT_NATIVE_FULL: return HD_FULL;
    }
    return HD_INVALID;
}

/* The crate's sentence as ours. */
static hd_status fail(text_native_status status, const char *sentence, hd_error *error) {
    return hd_error_set(error, status_of(status), "%s", sentence);
}

static void log_broken_template(const char *model_directory, const char *problem) {
    char directory[1024], quoted[1024];
    hd_log(HD_LOG_WARN, "chat_template_broken", "model=%s problem=%s",
           hd_log_quote(model_directory, directory, sizeof(directory)), hd_log_quote(problem, quoted, sizeof(quoted)));
}

static bool is_present(const text_model *model, uint32_t id) {
    return id < model->facts.id_count && (model->facts.flags[id] & TEXT_PIECE_PRESENT) != 0;
}

/* The post-processor writes ids that the file gives beside those of its vocabulary; nobody else has compared the two.
 * */
static hd_status check_framing(const text_model *model, const char *model_directory, hd_error *error) {
    uint32_t *ids = NULL, stray = 0;
    size_t count = 0;
    bool is_stray = false;
    if (text_encode(model, "", 0, true, &ids, &count, NULL) != HD_OK) return HD_OK; /* said where a text is encoded */
    for (size_t i = 0; i < count && !is_stray; i++) {
        is_stray = !is_present(model, ids[i]);
        stray = ids[i];
    }
    free(ids);
    if (!is_stray) return HD_OK;
    return hd_error_set(
        error, HD_CORRUPT,
        "%s/tokenizer.json: 'post_processor' puts the token id %u into texts, which is not in the vocabulary",
        model_directory, stray);
}

hd_status text_model_open(const char *model_directory, text_model **model, hd_error *error) {
    text_model *m = calloc(1, sizeof(*m));
    if (m == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for the tokenizer", model_directory);
    hd_error said = {{0}};
    text_native_slice directory = {model_directory, strlen(model_directory)};
    text_native_status status = text_native_open(directory, &m->native, said.text, sizeof(said.text));
    if (status != TEXT_NATIVE_OK) {
        free(m);
        return fail(status, said.text, error);
    }
    text_native_describe(m->native, &m->facts);
    hd_status framing = check_framing(m, model_directory, error);
    if (framing != HD_OK) {
        text_model_close(m);
        return framing;
    }
    /* The model still completes text, so a broken template is only refused where it is used. */
    if (text_native_template_problem(m->native, said.text, sizeof(said.text)))
        log_broken_template(model_directory, said.text);
    *model = m;
    return HD_OK;
}

void text_model_close(text_model *model) {
    if (model == NULL) return;
    text_native_close(model->native);
    free(model);
}

uint32_t text_vocabulary_size(const text_model *model) {
    return model->facts.vocabulary_size;
}

bool text_has_chat_template(const text_model *model) {
    return model->facts.has_template;
}

bool text_bos_id(const text_model *model, uint32_t *id) {
    if (model->facts.has_bos) *id = model->facts.bos_id;
    return model->facts.has_bos;
}

bool text_eos_id(const text_model *model, uint32_t *id) {
    if (model->facts.has_eos) *id = model->facts.eos_id;
    return model->facts.has_eos;
}

hd_status text_encode(const text_model *model, const char *text, size_t text_bytes, bool add_special_tokens,
                      uint32_t **ids, size_t *id_count, hd_error *error) {
    hd_error said = {{0}};
    text_native_slice slice = {text, text_bytes};
    text_native_buffer buffer;
    text_native_status status =
        text_native_encode(model->native, slice, add_special_tokens, &buffer, said.text, sizeof(said.text));
    if (status != TEXT_NATIVE_OK) return fail(status, said.text, error);
    *ids = buffer.data;
    *id_count = buffer.count;
    return HD_OK;
}

/* Grows by doubling, so that a long text is copied a bounded number of times. Keeps a zero behind the text. */
static bool append(char **text, size_t *used, size_t *capacity, const char *piece, size_t piece_bytes) {
    if (*used + piece_bytes + 1 > *capacity) {
        size_t wanted = *capacity * 2 > *used + piece_bytes + 1 ? *capacity * 2 : *used + piece_bytes + 1;
        char *grown = realloc(*text, wanted);
        if (grown == NULL) return false;
        *text = grown;
        *capacity = wanted;
    }
    memcpy(*text + *used, piece, piece_bytes);
    *used += piece_bytes;
    (*text)[*used] = '\0';
    return true;
}

hd_status text_decode(const text_model *model, const uint32_t *ids, size_t id_count, bool skip_special_tokens,
                      char **text, size_t *text_bytes, hd_error *error) {
    for (size_t i = 0; i < id_count; i++)
        if (!is_present(model, ids[i]))
            return hd_error_set(error, HD_INVALID, "token id %u is not in the vocabulary", ids[i]);
    char *joined = NULL;
    size_t used = 0, capacity = 0;
    text_stream *stream = NULL;
    hd_status status = text_stream_open(model, skip_special_tokens, &stream);
    for (size_t i = 0; status == HD_OK && i <= id_count; i++) {
        const char *piece;
        size_t piece_bytes;
        status = i < id_count ? text_stream_push(stream, ids[i], &piece, &piece_bytes)
                              : text_stream_finish(stream, &piece, &piece_bytes);
        if (status == HD_OK && !append(&joined, &used, &capacity, piece, piece_bytes)) status = HD_NO_MEMORY;
    }
    text_stream_close(stream);
    if (status != HD_OK) {
        free(joined);
        return hd_error_set(error, status, "decoding %zu tokens: %s", id_count, hd_status_text(status));
    }
    *text = joined;
    *text_bytes = used;
    return HD_OK;
}

hd_status text_token(const text_model *model, uint32_t id, char **text, unsigned char **bytes, size_t *byte_count) {
    if (!is_present(model, id)) return HD_INVALID;
    const uint8_t *piece = model->facts.bytes + model->facts.offsets[id];
    size_t piece_bytes = model->facts.offsets[id + 1] - model->facts.offsets[id];
    unsigned char *copy = malloc(piece_bytes + 1);
    char *shown = copy != NULL ? text_stream_lossy(piece, piece_bytes) : NULL;
    if (shown == NULL) {
        free(copy);
        return HD_NO_MEMORY;
    }
    memcpy(copy, piece, piece_bytes);
    copy[piece_bytes] = '\0';
    *text = shown;
    *bytes = copy;
    *byte_count = piece_bytes;
    return HD_OK;
}

hd_status text_render_chat(const text_model *model, const char *template_override, const char *context_json,
                           size_t context_bytes, char **text, size_t *text_bytes, hd_error *error) {
    hd_error said = {{0}};
    text_native_slice given = {template_override, template_override != NULL ? strlen(template_override) : 0};
    text_native_slice context = {context_json, context_bytes};
    text_native_buffer buffer;
    text_native_status status =
        text_native_render(model->native, given, context, &buffer, said.text, sizeof(said.text));
    if (status != TEXT_NATIVE_OK) return fail(status, said.text, error);
    *text = buffer.data;
    *text_bytes = buffer.count;
    return HD_OK;
}
