/* text_files.h - the golden files of tests/golden/text, and model directories made for one test. */
#ifndef TEXT_FILES_H
#define TEXT_FILES_H

#include <jansson.h>
#include <stdint.h>

#include "model/text/text.h"

#define GOLDEN_TEXT "tests/golden/text"

/* The JSON of a file; fails the test where it cannot be read. */
json_t *load_json(const char *directory, const char *name);

/* An open model, or a failed test. */
text_model *open_golden(const char *directory);

/* A temporary directory with the smallest tokenizer.json that opens, removed by remove_directory. */
typedef struct text_directory {
    char path[64];
} text_directory;
void make_directory(text_directory *directory);
void remove_directory(const text_directory *directory);
void put_file(const text_directory *directory, const char *name, const void *data, size_t bytes);
void put_text(const text_directory *directory, const char *name, const char *text);

#define SMALLEST_TOKENIZER                                                                                             \
    "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":2,\"content\":\"</"                                                \
    "s>\",\"special\":true,\"single_word\":false,\"lstrip\":false,"                                                    \
    "\"rstrip\":false,\"normalized\":false}],\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_"   \
    "offsets\":false,"                                                                                                 \
    "\"use_regex\":false},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}"

#endif
