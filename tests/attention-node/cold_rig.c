/* cold_rig.c - see cold_rig.h. */
#include "tests/attention-node/cold_rig.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TABLES_BYTES(dim) ((8u << 20) + (dim) * (128u << 10)) /* more than the engine takes besides blocks */

void cold_rig_init(cold_rig *rig, uint64_t window, uint32_t frames, uint32_t slots) {
    cold_rig_init_shape(rig, &(toy_shape){2, 2, 1, 16, 16, HD_F32, {0, window}, 0, false}, frames, slots);
}

void cold_rig_init_shape(cold_rig *rig, const toy_shape *shape, uint32_t frames, uint32_t slots) {
    memset(rig, 0, sizeof(*rig));
    toy_init(&rig->toy, shape);
    snprintf(rig->directory, sizeof(rig->directory), "/tmp/hadal-cold-XXXXXX");
    assert_non_null(mkdtemp(rig->directory));
    engine_config *config = &rig->toy.config;
    assert_int_equal(kernel_ops_choose(NULL, &config->kernels, NULL), HD_OK);
    uint64_t block_bytes = attention_layer_table_block_bytes(&config->layers);
    config->step_rows_max = 256;
    config->sequences_max = 16;
    config->hot_bytes = TABLES_BYTES(shape->value_dim) + frames * block_bytes;
    config->warm_bytes = 5u << 20; /* little more than the least: 128 pages */
    config->cold_directory = rig->directory;
    config->cold_patience_ms = 60000; /* the machine may be busy with something else */
    config->cold_bytes = 4096 + slots * (block_bytes + 4096);
    cold_rig_open(rig, 3); /* only to see how many they are; fewer threads need less */
    uint64_t more = cold_rig_stats(rig).blocks_total - slots - frames;
    config->hot_bytes -= more * block_bytes;
    cold_rig_close(rig);
}

void cold_rig_open(cold_rig *rig, unsigned threads) {
    toy_open(&rig->toy, threads);
}

void cold_rig_close(cold_rig *rig) {
    toy_close(&rig->toy);
}

int cold_rig_file(const cold_rig *rig, const char *name, int flags) {
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", rig->directory, name);
    return open(path, flags);
}

void cold_rig_fini(cold_rig *rig) {
    toy_fini(&rig->toy);
    static const char *const names[] = {"key", "index", "pages"};
    for (int i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof(path), "%s/%s", rig->directory, names[i]);
        unlink(path);
    }
    rmdir(rig->directory);
}

attention_stats cold_rig_stats(const cold_rig *rig) {
    attention_stats stats;
    rig->toy.attention->ops->stats(rig->toy.attention, &stats);
    return stats;
}

void cold_rig_settle(const cold_rig *rig) {
    while (cold_rig_stats(rig).cold_queue > 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void cold_rig_flip(const cold_rig *rig, uint64_t stride) {
    int file = cold_rig_file(rig, "pages", O_RDWR);
    assert_true(file >= 0);
    off_t bytes = lseek(file, 0, SEEK_END);
    for (off_t at = 100; at < bytes; at += (off_t)stride) {
        unsigned char byte;
        assert_int_equal(pread(file, &byte, 1, at), 1);
        byte ^= 4;
        assert_int_equal(pwrite(file, &byte, 1, at), 1);
    }
    close(file);
}
