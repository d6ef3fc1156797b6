/* rope_test.c - rotary frequencies against those that Hugging Face transformers computes (tests/golden/rope.json). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/config_read.h"
#include "model_files.h"

#define BASE_CONFIG                                                                                                    \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64, \"intermediate_size\": 64, "                     \
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"vocab_size\": 16}"

static int load_cases(void **state) {
    json_error_t error;
    *state = json_load_file("tests/golden/rope.json", 0, &error);
    return *state != NULL ? 0 : -1;
}

static int drop_cases(void **state) {
    json_decref(*state);
    return 0;
}

static model_config *read_case(const json_t *example, const char *form) {
    json_t *changes = json_deep_copy(json_object_get(example, form));
    json_object_set(changes, "head_dim", json_object_get(example, "head_dim"));
    json_object_set(changes, "max_position_embeddings", json_object_get(example, "max_position_embeddings"));
    char *changes_text = json_dumps(changes, 0);
    char *text = model_files_merge(BASE_CONFIG, changes_text);
    config_text config_json = {.path = "config.json", .text = text, .bytes = strlen(text)}, none = {.path = "none"};
    model_config *config = NULL;
    hd_error error = {{0}};
    if (model_config_read(&config_json, &none, &config, &error) != HD_OK) fail_msg("%s", error.text);
    free(text);
    free(changes_text);
    json_decref(changes);
    return config;
}

static int units_apart(float left, float right) {
    int32_t a, b;
    memcpy(&a, &left, sizeof(a));
    memcpy(&b, &right, sizeof(b));
    return abs(a - b);
}

/* The steps round alike, so only powers of the base can differ, where the other library's are a unit off in the last
 * place; the later steps of llama3 and yarn may make that two. */
static void compare_case(const json_t *example, const char *form) {
    const char *name = json_string_value(json_object_get(example, "name"));
    const json_t *expected = json_object_get(example, "inverse_frequencies");
    model_config *config = read_case(example, form);
    float frequencies[128], factor = 0.0f;
    assert_int_equal(config->rope.rotary_dim / 2, json_array_size(expected));
    rope_frequencies(&config->rope, (uint64_t)json_integer_value(json_object_get(example, "sequence_tokens")),
                     frequencies, &factor);
    size_t different = 0;
    for (size_t i = 0; i < json_array_size(expected); i++) {
        int units = units_apart(frequencies[i], (float)json_number_value(json_array_get(expected, i)));
        if (units > 2)
            fail_msg("%s, %s: frequency %zu is %.9g, %d units off", name, form, i, (double)frequencies[i], units);
        different += units != 0;
    }
    if (different > json_array_size(expected) / 10)
        fail_msg("%s, %s: %zu frequencies differ in their last bits", name, form, different);
    assert_float_equal(factor, json_number_value(json_object_get(example, "attention_factor")), 1e-7);
    model_config_close(config);
}

static void frequencies_are_those_of_transformers_in_both_spellings(void **state) {
    size_t index;
    json_t *example;
    assert_true(json_array_size(*state) >= 18);
    json_array_foreach((json_t *)*state, index, example) {
        compare_case(example, "older");
        compare_case(example, "newer");
    }
}

static void only_dynamic_rope_depends_on_the_length(void **state) {
    size_t index;
    json_t *example;
    json_array_foreach((json_t *)*state, index, example) {
        model_config *config = read_case(example, "older");
        float at_start[128], far[128], factor;
        rope_frequencies(&config->rope, 1, at_start, &factor);
        rope_frequencies(&config->rope, 1u << 20, far, &factor);
        bool is_same = memcmp(at_start, far, config->rope.rotary_dim / 2 * sizeof(float)) == 0;
        assert_int_equal(is_same, config->rope.kind != ROPE_DYNAMIC);
        model_config_close(config);
    }
}

static void dynamic_rope_is_plain_rope_within_the_trained_length(void **state) {
    rope_config rope = {
        .kind = ROPE_DYNAMIC, .theta = 10000.0, .factor = 4.0, .original_max_position = 2048, .rotary_dim = 64};
    float dynamic[32], plain[32], factor;
    rope_frequencies(&rope, 2048, dynamic, &factor);
    rope.kind = ROPE_NONE;
    rope_frequencies(&rope, 2048, plain, &factor);
    assert_memory_equal(dynamic, plain, sizeof(plain));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_are_those_of_transformers_in_both_spellings),
        cmocka_unit_test(only_dynamic_rope_depends_on_the_length),
        cmocka_unit_test(dynamic_rope_is_plain_rope_within_the_trained_length),
    };
    return cmocka_run_group_tests(tests, load_cases, drop_cases);
}
