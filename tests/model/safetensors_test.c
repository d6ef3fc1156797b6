/* safetensors_test.c - tensors are found in one file or many, and every kind of spoilt file is refused in words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "model/safetensors.h"
#include "model_files.h"

static const unsigned char zeros[256];

/* %s in a sentence stands for the directory. */
static void expect_refused(const model_files *files, hd_status expected_status, const char *sentence) {
    char expected[1200];
    safetensors *set = NULL;
    hd_error error = {{0}};
    snprintf(expected, sizeof(expected), sentence, files->directory);
    hd_status status = safetensors_open(files->directory, &set, &error);
    assert_string_equal(error.text, expected);
    assert_int_equal(status, expected_status);
    assert_null(set);
}

static int make_files(void **state) {
    static model_files files;
    model_files_make(&files);
    *state = &files;
    return 0;
}

static int remove_files(void **state) {
    model_files_remove(*state);
    return 0;
}

/* --- What is read --- */

static void write_shard(const model_files *files, const char *file, const char *first, const char *second) {
    tensor_writer writer;
    tensor_writer_init(&writer);
    tensor_writer_add(&writer, first, "BF16", 2, (uint64_t[]){3, 5}, 1.0f);
    if (second != NULL) tensor_writer_add(&writer, second, "F32", 1, (uint64_t[]){7}, 2.0f);
    tensor_writer_write(&writer, files, file);
    tensor_writer_fini(&writer);
}

static void expect_tensor_b(const safetensors *set) {
    const safetensors_tensor *tensor = safetensors_find(set, "b");
    assert_non_null(tensor);
    assert_true(tensor->is_float && tensor->dtype == HD_F32 && tensor->rank == 1 && tensor->shape[0] == 7);
    assert_string_equal(tensor->type, "F32");
    for (size_t i = 0; i < 7; i++) {
        float value;
        memcpy(&value, tensor->data + i * sizeof(value), sizeof(value));
        assert_true(value == tensor_writer_value("F32", 2.0f, i));
    }
}

static void tensors_of_one_file_are_found_by_name(void **state) {
    safetensors *set = NULL;
    write_shard(*state, "model.safetensors", "z", "b");
    assert_int_equal(safetensors_open(((model_files *)*state)->directory, &set, NULL), HD_OK);
    assert_int_equal(safetensors_count(set), 2);
    assert_string_equal(safetensors_at(set, 0)->name, "b");
    assert_int_equal(safetensors_index_of(set, safetensors_find(set, "z")), 1);
    assert_null(safetensors_find(set, "y"));
    expect_tensor_b(set);
    safetensors_close(set);
}

#define INDEX                                                                                                          \
    "{\"metadata\": {\"total_size\": 88}, \"weight_map\": {\"z\": \"model-1.safetensors\", \"b\": "                    \
    "\"model-1.safetensors\", \"a\": \"model-2.safetensors\"}}"

static void tensors_of_shards_are_found_by_name(void **state) {
    safetensors *set = NULL;
    write_shard(*state, "model-1.safetensors", "z", "b");
    write_shard(*state, "model-2.safetensors", "a", NULL);
    model_files_write(*state, "model.safetensors.index.json", INDEX, strlen(INDEX));
    assert_int_equal(safetensors_open(((model_files *)*state)->directory, &set, NULL), HD_OK);
    assert_int_equal(safetensors_file_count(set), 2);
    assert_int_equal(safetensors_count(set), 3);
    assert_non_null(strstr(safetensors_path(set, safetensors_find(set, "a")), "/model-2.safetensors"));
    assert_non_null(strstr(safetensors_path(set, safetensors_find(set, "z")), "/model-1.safetensors"));
    expect_tensor_b(set);
    safetensors_close(set);
}

static void a_single_file_goes_before_an_index(void **state) {
    safetensors *set = NULL;
    write_shard(*state, "model.safetensors", "z", "b");
    model_files_write(*state, "model.safetensors.index.json", "{", 1);
    assert_int_equal(safetensors_open(((model_files *)*state)->directory, &set, NULL), HD_OK);
    safetensors_close(set);
}

static void empty_tensors_other_types_and_metadata_are_no_fault(void **state) {
    safetensors *set = NULL;
    model_files_write_safetensors(
        *state, "model.safetensors",
        "{\"__metadata__\": {\"format\": \"pt\"}, \"i\": {\"dtype\": \"I64\", \"shape\": [1], "
        "\"data_offsets\": [0, 8]}, \"e\": {\"dtype\": \"F16\", \"shape\": [0, 4], \"data_offsets\": "
        "[8, 8]}, \"s\": {\"dtype\": \"F4\", \"shape\": [4], \"data_offsets\": [8, 10]}, \"n\": "
        "{\"dtype\": \"BF16\", \"shape\": [], \"data_offsets\": [10, 12]}}",
        zeros, 12);
    assert_int_equal(safetensors_open(((model_files *)*state)->directory, &set, NULL), HD_OK);
    assert_int_equal(safetensors_count(set), 4);
    assert_false(safetensors_find(set, "i")->is_float);
    assert_int_equal(safetensors_find(set, "e")->bytes, 0);
    assert_int_equal(safetensors_find(set, "n")->rank, 0);
    safetensors_close(set);
}

static void dropped_bytes_read_the_same_again(void **state) {
    safetensors *set = NULL;
    tensor_writer writer;
    tensor_writer_init(&writer);
    tensor_writer_add(&writer, "t", "F32", 1, (uint64_t[]){16384}, 3.0f);
    tensor_writer_write(&writer, *state, "model.safetensors");
    tensor_writer_fini(&writer);
    assert_int_equal(safetensors_open(((model_files *)*state)->directory, &set, NULL), HD_OK);
    const safetensors_tensor *tensor = safetensors_find(set, "t");
    safetensors_expect(tensor->data, tensor->bytes);
    safetensors_drop(tensor->data, tensor->bytes);
    safetensors_drop(tensor->data, 1);
    float value;
    memcpy(&value, tensor->data + 8192 * sizeof(value), sizeof(value));
    assert_true(value == tensor_writer_value("F32", 3.0f, 8192));
    safetensors_close(set);
}

/* --- What is refused --- */

typedef struct bad_header {
    const char *header;
    size_t data_bytes;
    hd_status status;
    const char *sentence; /* after "DIR/model.safetensors: " */
} bad_header;

#define TENSOR(name, dtype, shape, offsets)                                                                            \
    "\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": " offsets "}"

static const bad_header bad_headers[] = {
    {"{" TENSOR("w", "BF16", "[4, 8]", "[0, 64]") "}", 60, HD_CORRUPT,
     "tensor 'w' ends at byte 64 of the data, but the file has only 60: it is truncated"},
    {"{" TENSOR("w", "BF16", "[4, 8]", "[0, 64]") "}", 66, HD_CORRUPT, "2 bytes at the end belong to no tensor"},
    {"{" TENSOR("v", "F32", "[4]", "[0, 16]") ", " TENSOR("w", "F32", "[4]", "[12, 28]") "}", 28, HD_CORRUPT,
     "tensor 'w' overlaps tensor 'v'"},
    {"{" TENSOR("v", "F32", "[4]", "[0, 16]") ", " TENSOR("w", "F32", "[4]", "[0, 16]") "}", 16, HD_CORRUPT, NULL},
    {"{" TENSOR("v", "F32", "[4]", "[0, 16]") ", " TENSOR("w", "F32", "[4]", "[20, 36]") "}", 36, HD_CORRUPT,
     "tensor 'w': there is a hole in the file before it"},
    {"{" TENSOR("w", "F32", "[4]", "[4, 20]") "}", 20, HD_CORRUPT, "tensor 'w': there is a hole in the file before it"},
    {"{" TENSOR("w", "F16", "[4, 8]", "[0, 32]") "}", 32, HD_CORRUPT,
     "tensor 'w' has 32 bytes, but its shape and dtype need 64"},
    {"{" TENSOR("w", "F9", "[4]", "[0, 16]") "}", 16, HD_UNSUPPORTED, "tensor 'w': unknown dtype 'F9'"},
    {"{\"w\": {\"shape\": [4], \"data_offsets\": [0, 16]}}", 16, HD_CORRUPT, "tensor 'w': 'dtype' must be a string"},
    {"{\"w\": {\"dtype\": \"F32\", \"data_offsets\": [0, 16]}}", 16, HD_CORRUPT,
     "tensor 'w': 'shape' must be an array"},
    {"{" TENSOR("w", "F32", "[-4]", "[0, 16]") "}", 16, HD_CORRUPT, "tensor 'w': 'shape' must hold sizes"},
    {"{" TENSOR("w", "F32", "[4.0]", "[0, 16]") "}", 16, HD_CORRUPT, "tensor 'w': 'shape' must hold sizes"},
    {"{" TENSOR("w", "F32", "[1, 1, 1, 1, 1, 1, 1, 1, 4]", "[0, 16]") "}", 16, HD_CORRUPT,
     "tensor 'w': 'shape' has too many dimensions"},
    {"{" TENSOR("w", "F32", "[4294967296, 4294967296]", "[0, 16]") "}", 16, HD_CORRUPT,
     "tensor 'w': 'shape' is larger than any file"},
    {"{" TENSOR("w", "F6_E2M3", "[3]", "[0, 2]") "}", 2, HD_CORRUPT, "tensor 'w': 'shape' is no whole number of bytes"},
    {"{" TENSOR("w", "F32", "[4]", "[16, 0]") "}", 16, HD_CORRUPT,
     "tensor 'w': 'data_offsets' must be two byte positions in order"},
    {"{" TENSOR("w", "F32", "[4]", "[-16, 0]") "}", 16, HD_CORRUPT,
     "tensor 'w': 'data_offsets' must be two byte positions in order"},
    {"{" TENSOR("w", "F32", "[4]", "[0]") "}", 16, HD_CORRUPT,
     "tensor 'w': 'data_offsets' must be two byte positions in order"},
    {"{\"w\": 5}", 0, HD_CORRUPT, "tensor 'w': must be an object"},
    {"{" TENSOR("w", "F32", "[1]", "[0, 4]") ", " TENSOR("w", "F32", "[1]", "[4, 8]") "}", 8, HD_CORRUPT,
     "is not JSON: duplicate object key near '\"w\"' (line 1, column 65)"},
    {"[]", 0, HD_CORRUPT, "is JSON, but not an object"},
    {"{\"w\": ", 0, HD_CORRUPT, "is not JSON: unexpected token near end of file (line 1, column 8)"},
};

static void every_spoilt_header_is_refused_by_tensor_and_file(void **state) {
    const model_files *files = *state;
    for (size_t i = 0; i < sizeof(bad_headers) / sizeof(bad_headers[0]); i++) {
        const bad_header *bad = &bad_headers[i];
        model_files_write_safetensors(files, "model.safetensors", bad->header, zeros, bad->data_bytes);
        safetensors *set = NULL;
        hd_error error = {{0}};
        hd_status status = safetensors_open(files->directory, &set, &error);
        char expected[1200];
        snprintf(expected, sizeof(expected), "%s/model.safetensors: %s", files->directory,
                 bad->sentence != NULL ? bad->sentence : "");
        bool is_expected =
            bad->sentence != NULL ? strcmp(error.text, expected) == 0 : strstr(error.text, " overlaps tensor ") != NULL;
        if (status != bad->status || !is_expected || set != NULL) {
            fail_msg("%s gives %s: %s", bad->header, hd_status_name(status), error.text);
        }
    }
}

static void lengths_that_cannot_be_are_refused(void **state) {
    const model_files *files = *state;
    model_files_write(files, "model.safetensors", "", 0);
    expect_refused(files, HD_CORRUPT, "%s/model.safetensors: is empty");
    model_files_write(files, "model.safetensors", zeros, 7);
    expect_refused(files, HD_CORRUPT, "%s/model.safetensors: has 7 bytes, too few for a safetensors file");
    model_files_write(files, "model.safetensors", "\x01\xe1\xf5\x05\x00\x00\x00\x00{}", 10);
    expect_refused(files, HD_CORRUPT,
                   "%s/model.safetensors: its header claims 100000001 bytes; at most 100000000 are allowed");
    model_files_write(files, "model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    expect_refused(files, HD_CORRUPT,
                   "%s/model.safetensors: its header claims 18446744073709551615 bytes; at most 100000000 are allowed");
    model_files_write(files, "model.safetensors", "\x03\x00\x00\x00\x00\x00\x00\x00{}", 10);
    expect_refused(files, HD_CORRUPT,
                   "%s/model.safetensors: its header claims 3 bytes, but the file has 10: it is truncated");
}

static void a_directory_without_weights_says_so(void **state) {
    const model_files *files = *state;
    model_files_write(files, "pytorch_model.bin", "x", 1);
    expect_refused(
        files, HD_NOT_FOUND,
        "%s: has neither model.safetensors nor model.safetensors.index.json; weights are read from safetensors only");
}

static void an_index_that_lies_is_refused(void **state) {
    const model_files *files = *state;
    const struct {
        const char *text, *sentence;
    } rows[] = {
        {"{}", "%s/model.safetensors.index.json: 'weight_map' must be an object with a file per tensor"},
        {"{\"weight_map\": []}",
         "%s/model.safetensors.index.json: 'weight_map' must be an object with a file per tensor"},
        {"{\"weight_map\": {\"z\": 1}}",
         "%s/model.safetensors.index.json: 'weight_map' of tensor 'z' must be the name of a file in this directory"},
        {"{\"weight_map\": {\"z\": \"../secret\"}}",
         "%s/model.safetensors.index.json: 'weight_map' of tensor 'z' must be the name of a file in this directory"},
        {"{\"weight_map\": {\"z\": \"\"}}",
         "%s/model.safetensors.index.json: 'weight_map' of tensor 'z' must be the name of a file in this directory"},
        {"{\"weight_map\": ",
         "%s/model.safetensors.index.json: is not JSON: unexpected token near end of file (line 1, column 15)"},
        {"{\"weight_map\": {\"y\": \"model-1.safetensors\"}}",
         "%s/model-1.safetensors: has no tensor 'y', although the index file says so"},
    };
    write_shard(files, "model-1.safetensors", "z", "b");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        model_files_write(files, "model.safetensors.index.json", rows[i].text, strlen(rows[i].text));
        expect_refused(files, HD_CORRUPT, rows[i].sentence);
    }
    model_files_write(files, "model.safetensors.index.json", INDEX, strlen(INDEX));
    expect_refused(files, HD_NOT_FOUND, "%s/model-2.safetensors: cannot be opened: No such file or directory");
    write_shard(files, "model-2.safetensors", "z", NULL);
    expect_refused(files, HD_CORRUPT, "%s/model-2.safetensors: tensor 'z' is in another file, too");
}

static void a_path_that_is_no_file_is_refused(void **state) {
    const model_files *files = *state;
    char path[MODEL_FILES_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/model.safetensors", files->directory);
    assert_int_equal(symlink(".", path), 0);
    expect_refused(files, HD_INVALID, "%s/model.safetensors: is not a regular file");
    char long_path[5000];
    memset(long_path, 'a', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = '\0';
    safetensors *set = NULL;
    hd_error error = {{0}};
    assert_int_equal(safetensors_open(long_path, &set, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "aaa...: the path of the model directory is too long"));
}

static void open_survives_each_failed_allocation_and_read(void **state) {
    static const fault_kind kinds[] = {FAULT_ALLOCATION, FAULT_READ};
    const model_files *files = *state;
    write_shard(files, "model-1.safetensors", "z", "b");
    write_shard(files, "model-2.safetensors", "a", NULL);
    model_files_write(files, "model.safetensors.index.json", INDEX, strlen(INDEX));
    for (size_t kind = 0; kind < 2; kind++) {
        hd_status status = HD_IO;
        unsigned nth = 0;
        for (; status != HD_OK; nth++) {
            safetensors *set = NULL;
            hd_error error = {{0}};
            fault_arm(kinds[kind], nth);
            status = safetensors_open(files->directory, &set, &error);
            fault_disarm();
            assert_int_equal(status == HD_OK, set != NULL);
            if (status != HD_OK) assert_int_equal(status, kinds[kind] == FAULT_READ ? HD_IO : HD_NO_MEMORY);
            if (status != HD_OK) assert_true(error.text[0] != '\0');
            safetensors_close(set);
        }
        assert_true(nth > 3);
    }
}

#define WITH_FILES(test) cmocka_unit_test_setup_teardown(test, make_files, remove_files)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_FILES(tensors_of_one_file_are_found_by_name),
        WITH_FILES(tensors_of_shards_are_found_by_name),
        WITH_FILES(a_single_file_goes_before_an_index),
        WITH_FILES(empty_tensors_other_types_and_metadata_are_no_fault),
        WITH_FILES(dropped_bytes_read_the_same_again),
        WITH_FILES(every_spoilt_header_is_refused_by_tensor_and_file),
        WITH_FILES(lengths_that_cannot_be_are_refused),
        WITH_FILES(a_directory_without_weights_says_so),
        WITH_FILES(an_index_that_lies_is_refused),
        WITH_FILES(a_path_that_is_no_file_is_refused),
        WITH_FILES(open_survives_each_failed_allocation_and_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
