#include "coordinator/choice.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdlib.h>
#include <string.h>

#define BOS 256u
#define EOS 257u

static text_model *model;

static int open_model(void **state) {
    hd_error error;
    return text_model_open("tests/coordinator/model", &model, &error) != HD_OK;
}

static int close_model(void **state) {
    text_model_close(model);
    return 0;
}

typedef struct fixture {
    request request;
    request_stop stops[2];
    stop_set set;
    choice choice;
} fixture;

static void open_fixture(fixture *f, const char *first_stop, const char *second_stop, uint32_t logprob_width) {
    if (first_stop != NULL)
        f->request.stops[f->request.stop_count++] = (request_stop){(char *)first_stop, strlen(first_stop)};
    if (second_stop != NULL)
        f->request.stops[f->request.stop_count++] = (request_stop){(char *)second_stop, strlen(second_stop)};
    f->request.skip_special_tokens = true;
    assert_int_equal(stop_set_init(&f->set, f->request.stops, f->request.stop_count), HD_OK);
    assert_int_equal(choice_init(&f->choice, 0, model, &f->request, &f->set, logprob_width), HD_OK);
}

static void close_fixture(fixture *f) {
    choice_fini(&f->choice);
    stop_set_fini(&f->set);
}

static bool push_text(fixture *f, const char *text) {
    bool is_stopped = false;
    for (; *text != '\0'; text++) {
        worker_logprob own = {.token_id = (unsigned char)*text, .logprob = -1};
        is_stopped = choice_push(&f->choice, (unsigned char)*text, f->choice.log.width > 0 ? &own : NULL) || is_stopped;
    }
    return is_stopped;
}

static void assert_text(const fixture *f, const char *expected) {
    assert_int_equal(f->choice.text.count, strlen(expected));
    assert_memory_equal(f->choice.text.bytes, expected, strlen(expected));
}

static void tokens_become_whole_characters(void **state) {
    fixture f = {0};
    open_fixture(&f, NULL, NULL, 0);
    assert_false(push_text(&f, "caf\xc3"));
    assert_text(&f, "caf");
    assert_false(push_text(&f, "\xa9!"));
    assert_text(&f, "caf\xc3\xa9!");
    assert_false(push_text(&f, "\xe2\x82"));
    choice_finish(&f.choice, CHOICE_LENGTH, 0);
    assert_text(&f, "caf\xc3\xa9!\xef\xbf\xbd");
    assert_int_equal(f.choice.token_count, 8);
    close_fixture(&f);
}

static void a_stop_string_ends_the_text_before_it(void **state) {
    fixture f = {0};
    open_fixture(&f, "END", "\n\n", 0);
    assert_false(push_text(&f, "one EN"));
    assert_int_equal(choice_ready_bytes(&f.choice), 4);
    assert_true(push_text(&f, "Dtwo"));
    assert_text(&f, "one ");
    assert_int_equal(f.choice.finish, CHOICE_STOP);
    assert_int_equal(f.choice.stop_string, 0);
    assert_int_equal(f.choice.token_count, 7); /* what came after it was on its way and is not counted */
    choice_finish(&f.choice, CHOICE_LENGTH, 0);
    assert_int_equal(f.choice.finish, CHOICE_STOP);
    close_fixture(&f);
}

static void a_stop_string_that_is_asked_for_is_shown(void **state) {
    fixture f = {.request = {.include_stop_text = true}};
    open_fixture(&f, "END", NULL, 0);
    assert_true(push_text(&f, "one END two"));
    assert_text(&f, "one END");
    close_fixture(&f);
}

static void what_was_held_is_shown_when_no_stop_string_came_of_it(void **state) {
    fixture f = {0};
    open_fixture(&f, "END", NULL, 0);
    push_text(&f, "one EN");
    choice_finish(&f.choice, CHOICE_LENGTH, 0);
    assert_int_equal(choice_ready_bytes(&f.choice), 6);
    assert_text(&f, "one EN");
    close_fixture(&f);
}

static void stop_strings_count_from_min_tokens_on(void **state) {
    fixture f = {.request = {.sampling = {.min_tokens = 4}}};
    open_fixture(&f, "ab", NULL, 0);
    assert_false(push_text(&f, "abab"));
    assert_true(push_text(&f, "ab"));
    assert_text(&f, "abab");
    close_fixture(&f);
}

static void the_token_that_ends_it_is_counted_and_shown_only_on_demand(void **state) {
    static const uint32_t ids[] = {'#'};
    fixture f = {.request = {.sampling = {.stop_ids = ids, .stop_id_count = 1}}};
    open_fixture(&f, NULL, NULL, 0);
    push_text(&f, "hi");
    choice_finish(&f.choice, CHOICE_STOP, '#');
    assert_text(&f, "hi");
    assert_int_equal(f.choice.token_count, 3);
    assert_int_equal(f.choice.stop_id, '#');
    close_fixture(&f);

    fixture shown = {.request = {.include_stop_text = true, .sampling = {.stop_ids = ids, .stop_id_count = 1}}};
    open_fixture(&shown, NULL, NULL, 0);
    push_text(&shown, "hi");
    choice_finish(&shown.choice, CHOICE_STOP, '#');
    assert_text(&shown, "hi#");
    close_fixture(&shown);

    fixture ended = {.request = {.include_stop_text = true}};
    open_fixture(&ended, NULL, NULL, 0);
    push_text(&ended, "hi");
    choice_finish(&ended.choice, CHOICE_STOP, EOS);
    assert_text(&ended, "hi");
    assert_int_equal(ended.choice.stop_id, -1);
    close_fixture(&ended);
}

static void log_entries_wait_with_their_text_and_are_cut_with_it(void **state) {
    fixture f = {0};
    open_fixture(&f, "END", NULL, 1);
    push_text(&f, "xE");
    assert_int_equal(f.choice.log.count, 2);
    assert_int_equal(choice_ready_entries(&f.choice), 1);
    choice_take(&f.choice, choice_ready_bytes(&f.choice), 1);
    push_text(&f, "yEND");
    assert_int_equal(f.choice.finish, CHOICE_STOP);
    assert_text(&f, "Ey");
    assert_int_equal(choice_ready_entries(&f.choice), 2);
    assert_int_equal(f.choice.log.entries[0].id, 'E');
    assert_int_equal(f.choice.log.entries[0].text_point, 1);
    assert_int_equal(f.choice.log.entries[1].text_point, 2);
    close_fixture(&f);
}

static void offsets_count_characters(void **state) {
    fixture f = {0};
    open_fixture(&f, NULL, NULL, 1);
    push_text(&f, "\xc3\xa9z");
    assert_int_equal(f.choice.log.entries[0].text_point, 0);
    assert_int_equal(f.choice.log.entries[1].text_point, 0);
    assert_int_equal(f.choice.log.entries[2].text_point, 1);
    assert_int_equal(f.choice.log.entries[2].text_byte, 2);
    close_fixture(&f);
}

static void an_echo_is_not_searched_for_stop_strings(void **state) {
    static const uint32_t prompt[] = {BOS, 'E', 'N', 'D'};
    static const worker_logprob logprobs[] = {{0, 0}, {'E', -2}, {'N', -3}, {'D', -4}};
    fixture f = {0};
    open_fixture(&f, "END", NULL, 1);
    assert_int_equal(choice_log_prompt(&f.choice, model, prompt, 4, logprobs, 1), HD_OK);
    choice_prepend(&f.choice, "END", 3);
    assert_int_equal(choice_ready_bytes(&f.choice), 3);
    assert_int_equal(f.choice.log.count, 4);
    assert_null(token_log_logprobs(&f.choice.log, 0));
    assert_true(token_log_logprobs(&f.choice.log, 3)->logprob == -4);
    assert_int_equal(f.choice.log.entries[1].text_point, 0); /* bos has no text */
    assert_int_equal(f.choice.log.entries[3].text_point, 2);
    push_text(&f, "!");
    assert_int_equal(f.choice.log.entries[4].text_point, 3);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_become_whole_characters),
        cmocka_unit_test(a_stop_string_ends_the_text_before_it),
        cmocka_unit_test(a_stop_string_that_is_asked_for_is_shown),
        cmocka_unit_test(what_was_held_is_shown_when_no_stop_string_came_of_it),
        cmocka_unit_test(stop_strings_count_from_min_tokens_on),
        cmocka_unit_test(the_token_that_ends_it_is_counted_and_shown_only_on_demand),
        cmocka_unit_test(log_entries_wait_with_their_text_and_are_cut_with_it),
        cmocka_unit_test(offsets_count_characters),
        cmocka_unit_test(an_echo_is_not_searched_for_stop_strings),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
