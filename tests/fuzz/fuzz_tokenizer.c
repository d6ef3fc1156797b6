/* fuzz_tokenizer.c - tokenizer.json and, after a zero byte, tokenizer_config.json.
 *
 * What opens has to encode, decode and stream without surprise: ids come from the vocabulary, and a stream's pieces are
 * the text of all ids. */
#include <stdlib.h>
#include <string.h>

#include "tests/model/text/text_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static text_directory directory;

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static void clean_up(void) {
    remove_directory(&directory);
}

static void check_ids(const text_model *model, const uint32_t *ids, size_t count) {
    char *text = NULL;
    size_t bytes = 0, streamed_bytes = 0;
    text_stream *stream = NULL;
    hd_error error = {{0}};
    require(text_decode(model, ids, count, true, &text, &bytes, &error) == HD_OK);
    require(text_stream_open(model, true, &stream) == HD_OK);
    for (size_t i = 0; i <= count; i++) {
        const char *piece;
        size_t piece_bytes;
        hd_status status = i < count ? text_stream_push(stream, ids[i], &piece, &piece_bytes)
                                     : text_stream_finish(stream, &piece, &piece_bytes);
        require(status == HD_OK && streamed_bytes + piece_bytes <= bytes);
        require(memcmp(text + streamed_bytes, piece, piece_bytes) == 0);
        streamed_bytes += piece_bytes;
    }
    require(streamed_bytes == bytes);
    text_stream_close(stream);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char SAMPLE[] = "Hello a b </s> \xc3\xa9 \xe4\xb8\xad 12,\n ";
    if (directory.path[0] == '\0') {
        make_directory(&directory);
        atexit(clean_up);
    }
    const uint8_t *end = size > 0 ? memchr(data, 0, size) : NULL;
    size_t tokenizer_bytes = end != NULL ? (size_t)(end - data) : size;
    put_file(&directory, "tokenizer.json", data, tokenizer_bytes);
    put_file(&directory, "tokenizer_config.json", end != NULL ? end + 1 : (const uint8_t *)"{}",
             end != NULL ? size - tokenizer_bytes - 1 : 2);
    text_model *model = NULL;
    hd_error error = {{0}};
    hd_status status = text_model_open(directory.path, &model, &error);
    require((status == HD_OK) == (model != NULL));
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (model == NULL) return 0;
    uint32_t *ids = NULL;
    size_t count = 0;
    if (text_encode(model, SAMPLE, sizeof(SAMPLE) - 1, true, &ids, &count, &error) == HD_OK)
        check_ids(model, ids, count);
    free(ids);
    text_model_close(model);
    return 0;
}
