/* cold_restart_test.c - what was on the cold tier is found by the next process, and only by whom it belongs to. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/attention-node/cold_rig.h"

enum { PROMPT = 40 * 128 + 50, RECORD_BYTES = 4096, HEADER_BYTES = 4096 };

static void prompt_init(toy_sequence *s, uint64_t name, unsigned char salt, uint64_t seed) {
    toy_sequence_init(s, name, salt, PROMPT + 10);
    toy_sequence_push_text(s, seed, PROMPT);
}

/* Runs the prompt from where the cache ends, says where that was, and checks what comes out. */
static uint64_t serve(cold_rig *rig, uint64_t name, unsigned char salt, uint64_t seed, bool keep) {
    toy_sequence s;
    uint64_t cached;
    prompt_init(&s, name, salt, seed);
    assert_int_equal(toy_sequence_open(&rig->toy, &s, UINT64_MAX, &cached, NULL), HD_OK);
    toy_run(&rig->toy, &s, cached, PROMPT - cached, 256, NULL);
    toy_check_row(&rig->toy, &s, PROMPT - 1);
    attention *a = rig->toy.attention;
    assert_int_equal(a->ops->sequence_close(a, name, 1, keep, false), HD_OK);
    toy_sequence_fini(&s);
    return cached;
}

static void finished_prompts_are_found_after_a_restart(void **state) {
    cold_rig rig;
    cold_rig_init(&rig, 0, 14, 160);
    cold_rig_open(&rig, 2);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 0);
    assert_int_equal(serve(&rig, 2, 1, 4, false), 0);
    for (int restart = 0; restart < 3; restart++) {
        cold_rig_close(&rig);
        cold_rig_open(&rig, 2);
        assert_int_equal(cold_rig_stats(&rig).blocks_cached, 40);
        assert_int_equal(serve(&rig, 1, 1, 3, true), 40 * 128);
        assert_int_equal(serve(&rig, 2, 2, 3, false), 0); /* another tenant's */
        assert_int_equal(serve(&rig, 3, 1, 4, false), 0); /* not to be kept */
    }
    cold_rig_fini(&rig);
}

/* Who computes a prompt that is on disk has its blocks in memory, and not only there. */
static void a_prompt_that_is_computed_again_is_not_read(void **state) {
    cold_rig rig;
    cold_rig_init(&rig, 0, 60, 160);
    cold_rig_open(&rig, 1);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 0);
    cold_rig_close(&rig);
    cold_rig_open(&rig, 1);
    toy_sequence s;
    uint64_t cached;
    prompt_init(&s, 1, 1, 3);
    assert_int_equal(toy_sequence_open(&rig.toy, &s, 0, &cached, NULL), HD_OK); /* may take nothing from the cache */
    toy_run(&rig.toy, &s, 0, PROMPT, 256, NULL);
    toy_check_row(&rig.toy, &s, PROMPT - 1);
    assert_int_equal(cold_rig_stats(&rig).cold_read_bytes, 0);
    assert_int_equal(cold_rig_stats(&rig).blocks_sequences, 41); /* the forty, and the one that is not full */
    toy_sequence_fini(&s);
    cold_rig_fini(&rig);
}

/* Where what is left is more than there is room for now, the beginnings of prompts stay. */
static void a_smaller_cold_tier_keeps_what_fits(void **state) {
    cold_rig rig;
    cold_rig_init(&rig, 0, 14, 96);
    cold_rig_open(&rig, 1);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 0);
    assert_int_equal(serve(&rig, 2, 1, 4, true), 0);
    cold_rig_close(&rig);
    rig.toy.config.cold_bytes = rig.toy.config.cold_bytes * 2 / 3;
    cold_rig_open(&rig, 1);
    uint64_t left = cold_rig_stats(&rig).blocks_cached;
    assert_true(left >= 40 && left <= 64);
    uint64_t first = serve(&rig, 1, 1, 3, true), second = serve(&rig, 2, 1, 4, true);
    assert_true(first + second >= 40 * 128);
    cold_rig_fini(&rig);
}

/* Kills a process in the middle of its writing, again and again. */
static void nothing_wrong_is_found_after_a_kill(void **state) {
    cold_rig rig;
    uint64_t found = 0;
    cold_rig_init(&rig, 0, 14, 160);
    for (int round = 0; round < 8; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            cold_rig_open(&rig, 1);
            for (uint64_t i = 0;; i++) serve(&rig, 1, 1, (uint64_t)round % 3 + i % 4, true);
        }
        nanosleep(&(struct timespec){.tv_nsec = 150000000 + round * 37000000}, NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        cold_rig_open(&rig, 2);
        for (uint64_t seed = 0; seed < 3; seed++) found += serve(&rig, 1, 1, seed, true);
        assert_int_equal(cold_rig_stats(&rig).cold_verify_failures, 0);
        cold_rig_close(&rig);
    }
    assert_true(found > 0);
    cold_rig_fini(&rig);
}

static void torn_records_are_not_there(void **state) {
    cold_rig rig;
    cold_rig_init(&rig, 0, 14, 160);
    cold_rig_open(&rig, 1);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 0);
    cold_rig_close(&rig);
    int index = cold_rig_file(&rig, "index", O_RDWR);
    unsigned char bytes[100];
    memset(bytes, 0x5a, sizeof(bytes));
    /* The prompt's blocks have consecutive slots; its eleventh record loses its middle. */
    assert_int_equal(pwrite(index, bytes, sizeof(bytes), HEADER_BYTES + 10 * RECORD_BYTES + 300), sizeof(bytes));
    close(index);
    cold_rig_open(&rig, 1);
    assert_int_equal(cold_rig_stats(&rig).blocks_cached, 10);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 10 * 128);
    cold_rig_fini(&rig);
}

static void check_refused(cold_rig *rig, const char *what) {
    hd_error error = {.text = ""};
    attention *none = NULL;
    assert_int_equal(hd_pool_open(1, &rig->toy.pool), HD_OK);
    rig->toy.config.pool = rig->toy.pool;
    assert_int_not_equal(engine_open(&rig->toy.config, &none, &error), HD_OK);
    if (strstr(error.text, what) == NULL || strstr(error.text, rig->directory) == NULL) print_error("%s\n", error.text);
    assert_non_null(strstr(error.text, what));
    assert_non_null(strstr(error.text, rig->directory));
    toy_close(&rig->toy);
}

static void what_is_somebody_elses_is_refused_by_name(void **state) {
    cold_rig rig;
    cold_rig_init(&rig, 0, 14, 160);
    cold_rig_open(&rig, 1);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 0);
    engine_config other = rig.toy.config;
    attention *second = NULL;
    hd_error error;
    assert_int_equal(engine_open(&other, &second, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "in use by another process"));
    cold_rig_close(&rig);

    rig.toy.config.fingerprint[3] ^= 1;
    check_refused(&rig, "another model");
    rig.toy.config.fingerprint[3] ^= 1;
    uint32_t format = 99, first = 3;
    int index = cold_rig_file(&rig, "index", O_RDWR);
    assert_int_equal(pwrite(index, &format, sizeof(format), 8), sizeof(format));
    check_refused(&rig, "format");
    assert_int_equal(pwrite(index, &first, sizeof(first), 8), sizeof(first));
    close(index);

    int key = cold_rig_file(&rig, "key", O_RDONLY);
    struct stat about;
    assert_int_equal(fstat(key, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    assert_int_equal(fchmod(key, 0644), 0);
    check_refused(&rig, "chmod 600");
    assert_int_equal(fchmod(key, 0600), 0);
    close(key);
    cold_rig_open(&rig, 1);
    assert_int_equal(serve(&rig, 1, 1, 3, true), 40 * 128);
    cold_rig_fini(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finished_prompts_are_found_after_a_restart),
        cmocka_unit_test(a_prompt_that_is_computed_again_is_not_read),
        cmocka_unit_test(a_smaller_cold_tier_keeps_what_fits),
        cmocka_unit_test(nothing_wrong_is_found_after_a_kill),
        cmocka_unit_test(torn_records_are_not_there),
        cmocka_unit_test(what_is_somebody_elses_is_refused_by_name),
    };
    return cmocka_run_group_tests_name("cold_restart", tests, NULL, NULL);
}
