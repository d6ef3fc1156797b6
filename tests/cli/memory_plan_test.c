/* memory_plan_test.c - what fits, and the sentences for what does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cli/memory_plan.h"

#define GIB ((uint64_t)1 << 30)
#define MIB ((uint64_t)1 << 20)

static const memory_request sixteen_gib = {.usable_bytes = 16 * GIB,
                                           .weights_bytes = 2 * GIB,
                                           .weights_dtype = "bf16",
                                           .working_bytes = 1 * GIB,
                                           .kv_bytes_per_token = 32768,
                                           .model_tokens = 131072};

static void what_the_weights_leave_holds_keys_and_values(void **state) {
    memory_plan plan;
    hd_error error;
    assert_int_equal(memory_plan_make(&sixteen_gib, &plan, &error), HD_OK);
    assert_int_equal(plan.hot_bytes, 13 * GIB);
    assert_int_equal(plan.context_fits, 13 * GIB / 32768);
}

static void a_hot_memory_that_fits_is_taken_as_given(void **state) {
    memory_request request = sixteen_gib;
    memory_plan plan;
    hd_error error;
    request.hot_bytes = 13 * GIB;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_OK);
    assert_int_equal(plan.hot_bytes, 13 * GIB);
    request.hot_bytes = 100 * MIB + 5;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_OK);
    assert_int_equal(plan.hot_bytes, 100 * MIB + 5);
    assert_int_equal(plan.context_fits, 25 * 128);
}

static void weights_that_do_not_fit_are_refused_with_the_numbers(void **state) {
    memory_request request = sixteen_gib;
    memory_plan plan;
    hd_error error;
    request.usable_bytes = 2 * GIB + 512 * MIB;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_NO_MEMORY);
    assert_string_equal(
        error.text,
        "the weights take 2.0 GiB as bf16, a step 1.0 GiB, and this process may use 2.5 GiB; give it more memory, or "
        "smaller weights by --weights int8 or a smaller model");
    request.usable_bytes = 1 * GIB;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_NO_MEMORY);
}

static void a_hot_memory_that_does_not_fit_is_refused_with_the_numbers(void **state) {
    memory_request request = sixteen_gib;
    memory_plan plan;
    hd_error error;
    request.hot_bytes = 13 * GIB + 1;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_NO_MEMORY);
    assert_string_equal(
        error.text,
        "--hot-memory 13.0 GiB does not fit: this process may use 16.0 GiB, of which the weights take 2.0 GiB and a "
        "step 1.0 GiB; 13.0 GiB is left");
}

static void a_context_that_does_not_fit_is_refused_with_the_numbers(void **state) {
    memory_request request = sixteen_gib;
    memory_plan plan;
    hd_error error;
    request.hot_bytes = 1 * GIB;
    request.context_tokens = 32768;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_OK);
    request.context_tokens = 32769;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_NO_MEMORY);
    assert_string_equal(
        error.text,
        "--max-context 32769 needs 1.0 GiB of keys and values (32 KiB a token), and there is 1.0 GiB for them, which "
        "holds 32768 tokens; lower --max-context, or give more memory");
    request.context_tokens = 131073;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_INVALID);
    assert_string_equal(error.text,
                        "--max-context 131073 is more than the 131072 positions that the model was made for");
}

/* ---- Indexes ---- */

#define OVERHEAD (16 * MIB)

static uint64_t a_quarter_and_some(void *context, uint64_t tokens, bool with_keys) {
    return tokens * (with_keys ? 20480 : 8192) + OVERHEAD;
}

static const index_request one_gib = {.hot_bytes = 1 * GIB,
                                      .kv_bytes_per_token = 32768,
                                      .longest = 16384,
                                      .full_up_to = 4096,
                                      .bytes_for = a_quarter_and_some};

static void indexes_have_what_the_longest_request_needs(void **state) {
    index_request request = one_gib;
    assert_int_equal(memory_plan_index_bytes(&request), 16384 * 20480 + OVERHEAD); /* keys once more, which fit */
    request.longest = 20480;
    assert_int_equal(memory_plan_index_bytes(&request), 20480 * 8192 + OVERHEAD); /* more than an eighth; keys do not */
    request.longest = 5120;
    assert_int_equal(memory_plan_index_bytes(&request), GIB / 8);
    /* Keys, values and index of a shorter one share the memory. */
    request.longest = 32768;
    uint64_t bytes = memory_plan_index_bytes(&request), tokens = (bytes - OVERHEAD) / 8192;
    assert_in_range(tokens, 24000, 26000);
    assert_true(tokens * 32768 + bytes <= GIB);
    /* In files there is room, and half of the memory is for what is read from them. */
    request.has_cold = true;
    request.longest = 1u << 20;
    assert_in_range(memory_plan_index_bytes(&request), GIB / 2 - 8192, GIB / 2);
}

static void without_need_or_room_there_are_no_indexes(void **state) {
    index_request request = one_gib;
    request.longest = 4096;
    assert_int_equal(memory_plan_index_bytes(&request), 0); /* all of them are full */
    request = one_gib;
    request.full_up_to = 1u << 20;
    assert_int_equal(memory_plan_index_bytes(&request), 0);
    request = one_gib;
    request.hot_bytes = 140 * MIB; /* 4,480 tokens, and nothing beside 4,096 of them */
    assert_int_equal(memory_plan_index_bytes(&request), 0);
    request = one_gib;
    request.longest = 30000; /* fits alone, not beside its index */
    assert_int_not_equal(memory_plan_index_bytes(&request), 0);
    request.is_fixed = true;
    assert_int_equal(memory_plan_index_bytes(&request), 0);
}

/* An attention node. */
static void without_weights_the_rest_is_for_keys_and_values(void **state) {
    memory_request request = {.usable_bytes = 16 * GIB, .working_bytes = 1 * GIB, .kv_bytes_per_token = 1};
    memory_plan plan;
    hd_error error;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_OK);
    assert_int_equal(plan.hot_bytes, 15 * GIB);
    request.hot_bytes = 12 * GIB;
    request.warm_bytes = 4 * GIB;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_NO_MEMORY);
    assert_string_equal(error.text,
                        "--warm-memory 4.0 GiB does not fit: this process may use 16.0 GiB, of which the service takes "
                        "1.0 GiB, and hot memory 12.0 GiB; 3.0 GiB is left");
    request.warm_bytes = 3 * GIB;
    request.index_bytes = 12 * GIB;
    assert_int_equal(memory_plan_make(&request, &plan, &error), HD_INVALID);
    assert_string_equal(error.text, "--index-memory 12.0 GiB is part of the hot memory, 12.0 GiB, and has to be less");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_the_weights_leave_holds_keys_and_values),
        cmocka_unit_test(a_hot_memory_that_fits_is_taken_as_given),
        cmocka_unit_test(weights_that_do_not_fit_are_refused_with_the_numbers),
        cmocka_unit_test(a_hot_memory_that_does_not_fit_is_refused_with_the_numbers),
        cmocka_unit_test(without_weights_the_rest_is_for_keys_and_values),
        cmocka_unit_test(a_context_that_does_not_fit_is_refused_with_the_numbers),
        cmocka_unit_test(indexes_have_what_the_longest_request_needs),
        cmocka_unit_test(without_need_or_room_there_are_no_indexes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
