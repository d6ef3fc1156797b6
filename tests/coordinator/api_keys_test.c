#include "coordinator/api_keys.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[64];

static const char *file_of(const char *text) {
    strcpy(path, "/tmp/hadal-keys-XXXXXX");
    int fd = mkstemp(path);
    assert_int_equal(write(fd, text, strlen(text)), (int)strlen(text));
    close(fd);
    return path;
}

static int remove_file(void **state) {
    unlink(path);
    return 0;
}

static void keys_are_found_by_their_bearer_header_alone(void **state) {
    api_keys *keys;
    hd_error error;
    assert_int_equal(
        api_keys_open(file_of("# ours\n\nfirst-key-0001\nsecond-key-0002 admin\r\n  third-key-0003\n"), &keys, &error),
        HD_OK);
    assert_int_equal(api_keys_count(keys), 3);
    api_tenant tenant;
    assert_true(api_keys_find(keys, "Bearer first-key-0001", &tenant));
    assert_false(tenant.is_admin);
    assert_true(api_keys_find(keys, "bearer  second-key-0002 ", &tenant));
    assert_true(tenant.is_admin);
    assert_true(api_keys_find(keys, "Bearer third-key-0003", &tenant));
    const char *wrong[] = {NULL,
                           "",
                           "first-key-0001",
                           "Bearer",
                           "Bearer ",
                           "Bearer first-key-000",
                           "Bearer first-key-00011",
                           "Basic first-key-0001"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) assert_false(api_keys_find(keys, wrong[i], &tenant));
    api_keys_close(keys);
}

static void each_key_has_a_salt_of_its_own_that_stays(void **state) {
    api_tenant first[2], second[2];
    for (int i = 0; i < 2; i++) {
        api_keys *keys;
        hd_error error;
        assert_int_equal(api_keys_open(file_of("first-key-0001\nsecond-key-0002\n"), &keys, &error), HD_OK);
        assert_true(api_keys_find(keys, "Bearer first-key-0001", &first[i]));
        assert_true(api_keys_find(keys, "Bearer second-key-0002", &second[i]));
        api_keys_close(keys);
        unlink(path);
    }
    assert_memory_equal(first[0].salt, first[1].salt, TENANT_SALT_BYTES);
    assert_memory_not_equal(first[0].salt, second[0].salt, TENANT_SALT_BYTES);
    api_tenant_mix(first[0].salt, "user-7");
    assert_memory_not_equal(first[0].salt, first[1].salt, TENANT_SALT_BYTES);
    api_tenant_mix(second[0].salt, "user-7");
    assert_memory_not_equal(first[0].salt, second[0].salt, TENANT_SALT_BYTES);
    api_tenant_mix(first[1].salt, "user-7");
    assert_memory_equal(first[0].salt, first[1].salt, TENANT_SALT_BYTES);
}

static void a_bad_file_is_refused_with_its_line(void **state) {
    api_keys *keys;
    hd_error error;
    assert_int_equal(api_keys_open(file_of("good-key-0001\nshort\n"), &keys, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "line 2: a key has 8 to 512 bytes"));
    unlink(path);
    assert_int_equal(api_keys_open(file_of("good-key-0001 root\n"), &keys, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "line 1: only the word admin may follow a key"));
    unlink(path);
    assert_int_equal(api_keys_open(file_of("# none\n"), &keys, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "has no keys"));
    assert_int_equal(api_keys_open("/does/not/exist", &keys, &error), HD_IO);
    assert_string_equal(error.text, "--api-keys /does/not/exist: No such file or directory");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(keys_are_found_by_their_bearer_header_alone, remove_file),
        cmocka_unit_test_teardown(each_key_has_a_salt_of_its_own_that_stays, remove_file),
        cmocka_unit_test_teardown(a_bad_file_is_refused_with_its_line, remove_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
