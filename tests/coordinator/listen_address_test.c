#include "coordinator/listen_address.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static hd_status open_and_close(const char *address, bool must_be_loopback, char bound[LISTEN_ADDRESS_BYTES],
                                hd_error *error) {
    int listener;
    hd_status status = listen_address_open(address, must_be_loopback, &listener, bound, error);
    if (status == HD_OK) close(listener);
    return status;
}

static void port_0_is_replaced_by_the_real_one(void **state) {
    char bound[LISTEN_ADDRESS_BYTES];
    hd_error error;
    assert_int_equal(open_and_close("127.0.0.1:0", true, bound, &error), HD_OK);
    assert_memory_equal(bound, "127.0.0.1:", 10);
    assert_true(atoi(bound + 10) > 0);
    assert_int_equal(open_and_close("localhost:0", true, bound, &error), HD_OK);
    assert_memory_equal(bound, "127.0.0.1:", 10);
}

static void without_keys_only_loopback_may_be_listened_on(void **state) {
    char bound[LISTEN_ADDRESS_BYTES];
    hd_error error;
    assert_int_equal(open_and_close("0.0.0.0:0", true, bound, &error), HD_INVALID);
    assert_string_equal(
        error.text,
        "--listen 0.0.0.0:0 can be reached from other machines, and there are no keys: give --api-keys FILE, or "
        "listen on 127.0.0.1");
    assert_int_equal(open_and_close("[::]:0", true, bound, &error), HD_INVALID);
    assert_int_equal(open_and_close("0.0.0.0:0", false, bound, &error), HD_OK);
    assert_int_equal(open_and_close("127.8.9.1:0", true, bound, &error), HD_OK);
}

static void what_is_no_address_is_named(void **state) {
    char bound[LISTEN_ADDRESS_BYTES];
    hd_error error;
    const char *wrong[] = {"8000", "127.0.0.1", "127.0.0.1:", ":8000", "::1:8000", ""};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(open_and_close(wrong[i], true, bound, &error), HD_INVALID);
        assert_memory_equal(error.text, "--listen ", 9);
        assert_non_null(strstr(error.text, "give HOST:PORT, for instance 127.0.0.1:8000 or [::1]:8000"));
    }
    const char *ports[] = {"127.0.0.1:http", "127.0.0.1:70000", "127.0.0.1:-1", "127.0.0.1:80x"};
    for (size_t i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
        assert_int_equal(open_and_close(ports[i], true, bound, &error), HD_INVALID);
        assert_non_null(strstr(error.text, "the port is a number from 0 to 65535"));
    }
}

static void an_address_in_use_is_named(void **state) {
    char bound[LISTEN_ADDRESS_BYTES], again[LISTEN_ADDRESS_BYTES];
    hd_error error;
    int listener;
    assert_int_equal(listen_address_open("127.0.0.1:0", true, &listener, bound, &error), HD_OK);
    assert_int_equal(open_and_close(bound, true, again, &error), HD_IO);
    assert_non_null(strstr(error.text, bound));
    assert_non_null(strstr(error.text, "Address already in use"));
    close(listener);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(port_0_is_replaced_by_the_real_one),
        cmocka_unit_test(without_keys_only_loopback_may_be_listened_on),
        cmocka_unit_test(what_is_no_address_is_named),
        cmocka_unit_test(an_address_in_use_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
