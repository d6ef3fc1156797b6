/* Which table is chosen: the best one here, or the one that was named. */
#include "tests/kernels/cases.h"

#include <stdlib.h>

static void the_last_supported_table_of_the_list_is_the_default(void **state) {
    const kernel_ops *const *tables, *chosen = NULL, *best = NULL;
    size_t count = kernel_ops_list(&tables);
    for (size_t i = 0; i < count; i++) best = tables[i]->is_supported() ? tables[i] : best;
    unsetenv("HADAL_KERNELS");
    assert_int_equal(kernel_ops_choose(NULL, &chosen, NULL), HD_OK);
    assert_ptr_equal(chosen, best);
    assert_ptr_equal(tables[0], kernel_ops_portable());
}

static void a_name_wins_over_the_environment_and_that_over_the_default(void **state) {
    const kernel_ops *chosen = NULL;
    setenv("HADAL_KERNELS", "portable", 1);
    assert_int_equal(kernel_ops_choose(NULL, &chosen, NULL), HD_OK);
    assert_string_equal(chosen->name, "portable");
    setenv("HADAL_KERNELS", "nonsense", 1);
    assert_int_equal(kernel_ops_choose("portable", &chosen, NULL), HD_OK);
    unsetenv("HADAL_KERNELS");
}

static void an_unknown_name_is_refused_with_the_names_that_there_are(void **state) {
    const kernel_ops *chosen = NULL;
    hd_error error;
    assert_int_equal(kernel_ops_choose("abacus", &chosen, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "'abacus'"));
    assert_non_null(strstr(error.text, "portable"));
    assert_null(chosen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_supported_table_of_the_list_is_the_default),
        cmocka_unit_test(a_name_wins_over_the_environment_and_that_over_the_default),
        cmocka_unit_test(an_unknown_name_is_refused_with_the_names_that_there_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
