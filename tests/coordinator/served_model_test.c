/* served_model_test.c - which model a body asks for, found without parsing it. */
#include "tests/coordinator/cmocka_all.h"

#include <string.h>

#include "coordinator/served_model.h"

static served_model named(const char *name) {
    static const worker_info info = {.kernels = "k", .weights_dtype = "bf16", .kv_dtype = "bf16"};
    served_model model;
    served_model_init(&model, NULL, &info, NULL, name, 0);
    return model;
}

static void the_name_at_the_top_level_counts(void **state) {
    served_model first = named("first"), second = named("second");
    model_set set = {.count = 0};
    assert_null(model_set_of_body(&set, "{}", 2));
    assert_int_equal(model_set_add(&set, &first), HD_OK);
    assert_int_equal(model_set_add(&set, &second), HD_OK);
    const struct {
        const char *body;
        const served_model *model;
    } cases[] = {
        {"{\"model\":\"second\"}", &second},
        {"{\"a\":[{\"model\":\"first\"}], \"model\" : \"second\", \"prompt\":\"x\"}", &second},
        {"{\"prompt\":\"\\\"model\\\":\\\"second\\\"\"}", &first},
        {"{\"prompt\":\"a}\\\\\", \"model\":\"second\"}", &second},
        {"{\"x\":\"model\",\"y\":\"second\"}", &first},
        {"{\"model\":\"nobody\"}", &first},
        {"{\"model\":7}", &first},
        {"{\"model\":\"sec", &first},
        {"{\"model\":\"", &first},
        {"{\"model\"", &first},
        {"\"model\":\"second\"", &first},
        {"", &first},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_ptr_equal(model_set_of_body(&set, cases[i].body, strlen(cases[i].body)), cases[i].model);
    assert_ptr_equal(model_set_find(&set, "second", 6), &second);
    assert_null(model_set_find(&set, "secon", 5));
}

static void the_set_is_bounded(void **state) {
    served_model model = named("m");
    static model_set set;
    for (uint32_t i = 0; i < SERVED_MODELS_MAX; i++) assert_int_equal(model_set_add(&set, &model), HD_OK);
    assert_int_equal(model_set_add(&set, &model), HD_FULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_name_at_the_top_level_counts),
        cmocka_unit_test(the_set_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
