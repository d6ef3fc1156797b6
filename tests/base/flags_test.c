#include "base/flags.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

static struct {
    bool json;
    uint64_t threads, hot_memory, drain_timeout;
    double rate;
    const char *model;
} options;

static hd_flag flags[] = {
    {"json", HD_FLAG_BOOL, &options.json, NULL, "Print JSON.", false},
    {"threads", HD_FLAG_U64, &options.threads, "N", "Compute threads.", false},
    {"hot-memory", HD_FLAG_SIZE, &options.hot_memory, "BYTES", "Memory for KV.", false},
    {"drain-timeout", HD_FLAG_DURATION, &options.drain_timeout, "TIME", "How long to drain.", false},
    {"rate", HD_FLAG_DOUBLE, &options.rate, "R", "Requests per second.", false},
    {"model", HD_FLAG_STRING, &options.model, "DIR", "Model directory.", false},
};
#define FLAG_COUNT (sizeof(flags) / sizeof(flags[0]))

static const char *positionals[2];
static size_t positional_count;
static hd_error error;

static int reset(void **state) {
    memset(&options, 0, sizeof(options));
    options.threads = 7;
    for (size_t i = 0; i < FLAG_COUNT; i++) flags[i].is_set = false;
    positional_count = 0;
    error.text[0] = '\0';
    unsetenv("HADAL_THREADS");
    unsetenv("HADAL_HOT_MEMORY");
    unsetenv("HADAL_JSON");
    return 0;
}

/* Arguments as one string, separated by single spaces. */
static hd_status parse(const char *line) {
    static char text[512];
    char *argv[32];
    int argc = 0;
    strcpy(text, line);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = word;
    return hd_flags_parse(flags, FLAG_COUNT, argc, argv, positionals, 2, &positional_count, &error);
}

static void refused(const char *line, const char *sentence) {
    reset(NULL);
    assert_int_equal(parse(line), HD_INVALID);
    assert_string_equal(error.text, sentence);
}

static void each_kind_fills_its_target(void **state) {
    assert_int_equal(parse("--json --threads 4 --hot-memory 16G --drain-timeout 1m --rate 1.5 --model /models/a"),
                     HD_OK);
    assert_true(options.json);
    assert_int_equal(options.threads, 4);
    assert_int_equal(options.hot_memory, 16ull << 30);
    assert_int_equal(options.drain_timeout, 60000);
    assert_true(options.rate == 1.5);
    assert_string_equal(options.model, "/models/a");
    for (size_t i = 0; i < FLAG_COUNT; i++) assert_true(flags[i].is_set);
}

static void a_value_may_follow_an_equals_sign(void **state) {
    assert_int_equal(parse("--threads=4 --model=a=b --json=false"), HD_OK);
    assert_int_equal(options.threads, 4);
    assert_string_equal(options.model, "a=b");
    assert_false(options.json);
    assert_true(flags[0].is_set);
}

static void an_absent_flag_keeps_the_default(void **state) {
    assert_int_equal(parse(""), HD_OK);
    assert_int_equal(options.threads, 7);
    assert_false(flags[1].is_set);
}

static void the_last_of_several_counts(void **state) {
    assert_int_equal(parse("--threads 1 --threads 2"), HD_OK);
    assert_int_equal(options.threads, 2);
}

static void positionals_come_back_in_order(void **state) {
    assert_int_equal(parse("first --json second"), HD_OK);
    assert_int_equal(positional_count, 2);
    assert_string_equal(positionals[0], "first");
    assert_string_equal(positionals[1], "second");
}

static void two_dashes_end_the_flags(void **state) {
    assert_int_equal(parse("- -- --threads"), HD_OK);
    assert_int_equal(positional_count, 2);
    assert_string_equal(positionals[0], "-");
    assert_string_equal(positionals[1], "--threads");
    assert_int_equal(options.threads, 7);
}

static void the_environment_fills_what_the_command_line_leaves(void **state) {
    setenv("HADAL_THREADS", "3", 1);
    setenv("HADAL_HOT_MEMORY", "1M", 1);
    setenv("HADAL_JSON", "true", 1);
    assert_int_equal(parse("--threads 5"), HD_OK);
    assert_int_equal(options.threads, 5);
    assert_int_equal(options.hot_memory, 1 << 20);
    assert_true(options.json);
    assert_true(flags[2].is_set);
}

static void an_empty_variable_is_none(void **state) {
    setenv("HADAL_THREADS", "", 1);
    assert_int_equal(parse(""), HD_OK);
    assert_int_equal(options.threads, 7);
}

static void a_bad_variable_is_named(void **state) {
    setenv("HADAL_HOT_MEMORY", "lots", 1);
    assert_int_equal(parse(""), HD_INVALID);
    assert_string_equal(error.text, "HADAL_HOT_MEMORY: 'lots' is not a size such as 512M or 16G");
}

static void an_unknown_flag_is_refused_with_the_nearest_known(void **state) {
    refused("--treads 4", "unknown flag --treads; did you mean --threads?");
    refused("--hot-memroy=4G", "unknown flag --hot-memroy; did you mean --hot-memory?");
    refused("-threads 4", "unknown flag -threads; did you mean --threads?");
    refused("--completely-different", "unknown flag --completely-different");
    refused("-h", "unknown flag -h");
}

static void a_missing_value_is_refused(void **state) {
    refused("--threads", "--threads needs a value: --threads N");
    refused("--model --json", "--model needs a value: --model DIR");
}

static void a_bad_value_is_refused_by_kind(void **state) {
    refused("--threads four", "--threads: 'four' is not a whole number");
    refused("--threads -1", "--threads: '-1' is not a whole number");
    refused("--threads 1.5", "--threads: '1.5' is not a whole number");
    refused("--threads 18446744073709551616", "--threads: '18446744073709551616' is not a whole number");
    refused("--hot-memory 4X", "--hot-memory: '4X' is not a size such as 512M or 16G");
    refused("--drain-timeout 5", "--drain-timeout: '5' is not a duration such as 2s or 500ms");
    refused("--rate fast", "--rate: 'fast' is not a number");
    refused("--rate inf", "--rate: 'inf' is not a number");
    refused("--json=maybe", "--json: 'maybe' is not 'true' or 'false'");
}

static void too_many_positionals_are_refused(void **state) {
    refused("a b c", "unexpected argument 'c'");
    assert_int_equal(positional_count, 0); /* outputs are set only on success */
}

static void sizes_are_powers_of_1024(void **state) {
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"123", 123},
                {"1K", 1024},
                {"512M", 512ull << 20},
                {"16g", 16ull << 30},
                {"1T", 1ull << 40},
                {"4GiB", 4ull << 30},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {
        "", "G", "-1", "+1", " 1", "1 G", "1.5G", "1GB", "0x10", "16777216T", "18446744073709551616", "1Gx"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(hd_parse_size(good[i].text, &bytes), HD_OK);
        assert_true(bytes == good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(hd_parse_size(bad[i], &bytes), HD_INVALID);
}

static void durations_need_a_unit(void **state) {
    static const struct {
        const char *text;
        uint64_t milliseconds;
    } good[] = {{"0", 0}, {"500ms", 500}, {"2s", 2000}, {"5m", 300000}, {"1h", 3600000}};
    static const char *const bad[] = {
        "", "5", "s", "1d", "-1s", "1.5s", "99999999999999999999ms", "18446744073709551615h"};
    uint64_t milliseconds;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(hd_parse_duration(good[i].text, &milliseconds), HD_OK);
        assert_true(milliseconds == good[i].milliseconds);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(hd_parse_duration(bad[i], &milliseconds), HD_INVALID);
}

static void sizes_print_with_the_largest_unit_that_fits(void **state) {
    char text[32];
    assert_string_equal(hd_format_size(0, text, sizeof(text)), "0 B");
    assert_string_equal(hd_format_size(512 * 1024, text, sizeof(text)), "512 KiB");
    assert_string_equal(hd_format_size(4ull << 30, text, sizeof(text)), "4.0 GiB");
    assert_string_equal(hd_format_size(3ull << 29, text, sizeof(text)), "1.5 GiB");
    assert_string_equal(hd_format_size(UINT64_MAX, text, sizeof(text)), "16.0 EiB");
}

static void help_shows_every_flag_with_its_default(void **state) {
    char *text;
    size_t bytes;
    options.drain_timeout = 1500;
    options.hot_memory = 1ull << 30;
    options.model = "/m";
    FILE *out = open_memstream(&text, &bytes);
    hd_flags_print_help(flags, FLAG_COUNT, out);
    fclose(out);
    assert_string_equal(text, "  --json                Print JSON.\n"
                              "  --threads N           Compute threads. (default 7)\n"
                              "  --hot-memory BYTES    Memory for KV. (default 1.0 GiB)\n"
                              "  --drain-timeout TIME  How long to drain. (default 1500ms)\n"
                              "  --rate R              Requests per second.\n"
                              "  --model DIR           Model directory. (default /m)\n");
    free(text);
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, reset, reset)

int main(void) {
    const struct CMUnitTest tests[] = {
        FRESH(each_kind_fills_its_target),
        FRESH(a_value_may_follow_an_equals_sign),
        FRESH(an_absent_flag_keeps_the_default),
        FRESH(the_last_of_several_counts),
        FRESH(positionals_come_back_in_order),
        FRESH(two_dashes_end_the_flags),
        FRESH(the_environment_fills_what_the_command_line_leaves),
        FRESH(an_empty_variable_is_none),
        FRESH(a_bad_variable_is_named),
        FRESH(an_unknown_flag_is_refused_with_the_nearest_known),
        FRESH(a_missing_value_is_refused),
        FRESH(a_bad_value_is_refused_by_kind),
        FRESH(too_many_positionals_are_refused),
        FRESH(sizes_are_powers_of_1024),
        FRESH(durations_need_a_unit),
        FRESH(sizes_print_with_the_largest_unit_that_fits),
        FRESH(help_shows_every_flag_with_its_default),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
