/* selection_overrides_test.c - the file of overrides: what it may say, and what answers become. */
#include "attention-node/selection_overrides.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static hd_status read_text(const char *text, selection_overrides *out, hd_error *error) {
    attention_stream streams[] = {{.heads = 4, .dim = 64}, {.heads = 4, .dim = 64}};
    attention_layer layers[8];
    for (uint32_t i = 0; i < 8; i++) layers[i] = (attention_layer){.key_stream = 0, .value_stream = 1};
    attention_layer_table table = {streams, 2, layers, 8};
    char path[] = "/tmp/overrides-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    hd_status status = selection_overrides_read(path, &table, out, error);
    unlink(path);
    return status;
}

static selection_answer applied(const selection_overrides *o, uint32_t layer, uint32_t head) {
    selection_answer answer = {.sinks_end = 5, .recent_first = 100, .is_searched = true};
    selection_overrides_apply(o, layer, head, &answer);
    return answer;
}

static void lines_change_the_answers_that_they_name(void **state) {
    selection_overrides o;
    assert_int_equal(read_text("# what was measured\n0-1 full\n\n 3\t2-3 window # streaming\n1 0 window\n", &o, NULL),
                     HD_OK);
    assert_true(applied(&o, 0, 0).is_everything);
    assert_true(applied(&o, 0, 3).is_everything);
    assert_true(applied(&o, 1, 1).is_everything);
    assert_false(applied(&o, 1, 0).is_everything); /* a later line */
    assert_false(applied(&o, 1, 0).is_searched);
    assert_int_equal(applied(&o, 1, 0).recent_first, 100);
    assert_true(applied(&o, 2, 0).is_searched);
    assert_true(applied(&o, 3, 1).is_searched);
    assert_false(applied(&o, 3, 2).is_searched);
    selection_overrides_fini(&o);
    assert_true(applied(NULL, 0, 0).is_searched);
    assert_true(applied(&o, 0, 0).is_searched);
}

static void bad_lines_are_named(void **state) {
    const char *const bad[] = {"8 full",     "0-9 full", "2-1 full", "1 4 full", "full",
                               "1 2 3 full", "1 some",   "-1 full",  "1- full"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char text[64];
        selection_overrides o = {0};
        hd_error error = {.text = ""};
        snprintf(text, sizeof(text), "0 full\n%s\n", bad[i]);
        assert_int_equal(read_text(text, &o, &error), HD_INVALID);
        assert_non_null(strstr(error.text, "line 2: not 'LAYER"));
        assert_null(o.modes);
    }
    hd_error error;
    attention_layer_table table = {NULL, 0, NULL, 0};
    assert_int_equal(selection_overrides_read("/nowhere/file", &table, &(selection_overrides){0}, &error), HD_IO);
    assert_non_null(strstr(error.text, "/nowhere/file"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_change_the_answers_that_they_name),
        cmocka_unit_test(bad_lines_are_named),
    };
    return cmocka_run_group_tests_name("selection_overrides", tests, NULL, NULL);
}
