/* frame_test.c - frames there and back, and every kind of damage refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "proto/frame.h"

static unsigned char *encode(const frame *f, size_t *count) {
    unsigned char head[FRAME_HEAD_BYTES];
    frame_part pieces[FRAME_PIECES_MAX];
    unsigned piece_count = frame_encode(f, head, pieces);
    *count = frame_bytes(f);
    unsigned char *bytes = hd_alloc(*count, FRAME_ALIGN);
    size_t at = 0;
    for (unsigned i = 0; i < piece_count; i++) {
        memcpy(bytes + at, pieces[i].bytes, pieces[i].count);
        at += pieces[i].count;
    }
    assert_int_equal(at, *count);
    return bytes;
}

static const char first[] = "queries of a layer", second[200] = "keys";

static const frame sample = {.kind = 7,
                             .flags = 3,
                             .layer = 11,
                             .tag = 0x1122334455667788,
                             .sequence = 5,
                             .epoch = 6,
                             .value = 9,
                             .part_count = 3,
                             .parts = {{first, sizeof(first)}, {NULL, 0}, {second, 128}}};

static void a_frame_comes_back_as_it_was(void **state) {
    size_t count;
    unsigned char *bytes = encode(&sample, &count);
    frame f;
    hd_error error;
    assert_int_equal(frame_decode(bytes, count, &f, &error), HD_OK);
    assert_int_equal(f.kind, 7);
    assert_int_equal(f.flags, 3);
    assert_int_equal(f.layer, 11);
    assert_int_equal(f.tag, 0x1122334455667788);
    assert_int_equal(f.sequence, 5);
    assert_int_equal(f.epoch, 6);
    assert_int_equal(f.value, 9);
    assert_int_equal(f.part_count, 3);
    assert_int_equal(f.parts[0].count, sizeof(first));
    assert_string_equal(f.parts[0].bytes, first);
    assert_int_equal(f.parts[1].count, 0);
    assert_memory_equal(f.parts[2].bytes, second, 128);
    for (int i = 0; i < 3; i++) assert_int_equal((uintptr_t)f.parts[i].bytes % FRAME_ALIGN, 0);
    size_t again_count;
    unsigned char *again = encode(&f, &again_count);
    assert_int_equal(again_count, count);
    assert_memory_equal(again, bytes, count);
    hd_free(again);
    hd_free(bytes);
}

static void the_layout_is_what_other_versions_know(void **state) {
    size_t count;
    unsigned char *bytes = encode(&(frame){.kind = 1, .tag = 2}, &count);
    static const unsigned char golden[56] = {'H', 'A', 'D', 'L', 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2};
    assert_int_equal(count, FRAME_HEAD_BYTES);
    assert_memory_equal(bytes, golden, sizeof(golden));
    static const unsigned char checksum[8] = {0x39, 0x5a, 0x09, 0xe3, 0x2b, 0x02, 0x29, 0x39};
    assert_memory_equal(bytes + 56, checksum, 8);
    hd_free(bytes);
}

static void every_flipped_bit_is_found(void **state) {
    size_t count;
    unsigned char *bytes = encode(&sample, &count);
    for (size_t bit = 0; bit < count * 8; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        frame f;
        hd_error error;
        hd_status status = frame_decode(bytes, count, &f, &error);
        assert_true(status == HD_CORRUPT || status == HD_UNSUPPORTED);
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    hd_free(bytes);
}

static void every_cut_is_found(void **state) {
    size_t count;
    unsigned char *bytes = encode(&sample, &count);
    for (size_t left = 0; left < count; left++) {
        unsigned char *cut = malloc(left + 1); /* so that a sanitizer sees a byte too many */
        memcpy(cut, bytes, left);
        frame f;
        hd_error error;
        assert_int_equal(frame_decode(cut, left, &f, &error), HD_CORRUPT);
        free(cut);
    }
    hd_free(bytes);
}

static void damage_is_named(void **state) {
    const struct {
        size_t at;
        unsigned char value;
        hd_status status;
        const char *says;
    } cases[] = {
        {0, 'X', HD_CORRUPT, "magic"},        {4, 9, HD_UNSUPPORTED, "version is 9"}, {8, 200, HD_CORRUPT, "200 parts"},
        {65, 255, HD_CORRUPT, "part 0"},      {88, 1, HD_CORRUPT, "part 3"},          {50, 1, HD_CORRUPT, "reserved"},
        {200, 1, HD_CORRUPT, "the checksum"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t count;
        unsigned char *bytes = encode(&sample, &count);
        bytes[cases[i].at] = cases[i].value;
        frame f;
        hd_error error = {{0}};
        assert_int_equal(frame_decode(bytes, count, &f, &error), cases[i].status);
        if (strstr(error.text, cases[i].says) == NULL) fail_msg("'%s' does not say '%s'", error.text, cases[i].says);
        hd_free(bytes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_comes_back_as_it_was),
        cmocka_unit_test(the_layout_is_what_other_versions_know),
        cmocka_unit_test(every_flipped_bit_is_found),
        cmocka_unit_test(every_cut_is_found),
        cmocka_unit_test(damage_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
