/* fuzz_cold_index.c - the files `index` and `key` of a cold directory. The first byte says which:
 *
 *   r  the file as it is, its key missing
 *   s  the header, and behind it the records' heads one after the other, each with the seal that fits; so what lies
 *   behind
 *      the seals is reached
 *   k  the file `key`, which others may read where its first byte is 'p'
 *   d  a directory where the index should be */
#include <fcntl.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attention-node/cold_directory.h"
#include "base/memory.h"

enum { HEADER_BYTES = 88, HEADER_PLACE = 4096, SIZE_BYTES = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[] = "/tmp/hadal-fuzz-cold-XXXXXX";
static bool has_directory;
static const unsigned char key[IDENTITY_KEY_BYTES] = "the key of this directory";

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static void path_of(const char *name, char path[64]) {
    snprintf(path, 64, "%s/%s", directory, name);
}

static void clean_files(void) {
    static const char *const names[] = {"key", "index", "pages"};
    char path[64];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        path_of(names[i], path);
        remove(path);
    }
}

static void clean_up(void) {
    clean_files();
    rmdir(directory);
}

static void put_file(const char *name, const void *bytes, size_t count, mode_t mode) {
    char path[64];
    path_of(name, path);
    unlink(path);
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, mode);
    require(file >= 0 && write(file, bytes, count) == (ssize_t)count && close(file) == 0);
}

/* ---- Seals ---- */

static void seal(void *bytes, size_t count, unsigned char *at) {
    memset(at, 0, COLD_SEAL_BYTES);
    unsigned char sum[COLD_SEAL_BYTES];
    crypto_generichash(sum, sizeof(sum), bytes, count, key, sizeof(key));
    memcpy(at, sum, sizeof(sum));
}

/* The file whose header and record heads are these. */
static size_t sealed_index(const uint8_t *data, size_t size, uint64_t record_bytes, unsigned char **out) {
    size_t record_count =
        size > HEADER_BYTES ? (size - HEADER_BYTES + sizeof(cold_record) - 1) / sizeof(cold_record) : 0;
    size_t bytes = HEADER_PLACE + record_count * record_bytes;
    unsigned char *index = calloc(1, bytes);
    require(index != NULL);
    memcpy(index, data, size < HEADER_BYTES ? size : HEADER_BYTES);
    /* A header's seal is not over its own place. */
    unsigned char sum[COLD_SEAL_BYTES];
    crypto_generichash(sum, sizeof(sum), index, HEADER_BYTES - COLD_SEAL_BYTES, key, sizeof(key));
    memcpy(index + HEADER_BYTES - COLD_SEAL_BYTES, sum, sizeof(sum));
    for (size_t i = 0; i < record_count; i++) {
        const uint8_t *from = data + HEADER_BYTES + i * sizeof(cold_record);
        unsigned char *record = index + HEADER_PLACE + i * record_bytes;
        size_t left = size - HEADER_BYTES - i * sizeof(cold_record);
        memcpy(record, from, left < sizeof(cold_record) ? left : sizeof(cold_record));
        seal(record, record_bytes, record + offsetof(cold_record, seal));
    }
    *out = index;
    return bytes;
}

/* ---- What is believed ---- */

/* A record that is found is one, of this slot; put again it is found again; cleared it is gone. */
static void check_records(cold_directory *d) {
    cold_record *record = hd_alloc(d->record_bytes, COLD_CHUNK_BYTES);
    require(record != NULL);
    for (uint32_t slot = 0; slot < d->slot_count; slot++) {
        if (cold_directory_get_record(d, slot, record) != HD_OK) continue;
        uint32_t depth = record->depth;
        require(record->slot == slot);
        require(cold_directory_put_record(d, slot, record) == HD_OK);
        require(cold_directory_get_record(d, slot, record) == HD_OK && record->depth == depth);
        require(cold_directory_clear_record(d, slot) == HD_OK);
        require(cold_directory_get_record(d, slot, record) == HD_NOT_FOUND);
    }
    hd_free(record);
}

static void open_directory(void) {
    static const attention_stream streams[] = {
        {.owner_layer = 0, .heads = 1, .dim = 32, .codec = HD_BF16, .tokens_per_record = 1},
        {.owner_layer = 0, .heads = 1, .dim = 32, .codec = HD_BF16, .tokens_per_record = 1}};
    static const attention_layer layers[] = {
        {.key_stream = 0, .value_stream = 1, .value_dim = 32, .query_heads = 1, .scale = 1.0f}};
    static const attention_layer_table table = {streams, 2, layers, 1};
    static const unsigned char fingerprint[16] = "weights";
    hd_arena arena;
    block_layout layout;
    require(hd_arena_init(&arena, block_layout_table_bytes(&table)) == HD_OK);
    block_layout_init(&layout, &table, &arena);
    cold_config config = {
        .directory = directory, .size_bytes = SIZE_BYTES, .fingerprint = fingerprint, .kv_dtype = HD_BF16};
    cold_directory d;
    hd_error error = {.text = ""};
    hd_status status = cold_directory_open(&d, &config, &table, &layout, &error);
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (status == HD_OK) {
        cold_directory second;
        require(cold_directory_open(&second, &config, &table, &layout, &error) == HD_INVALID); /* it is in use */
        cold_directory_close(&second);
        check_records(&d);
    }
    cold_directory_close(&d);
    hd_arena_fini(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || memchr("rskd", data[0], 4) == NULL) return 0;
    if (!has_directory) {
        require(sodium_init() >= 0 && mkdtemp(directory) != NULL);
        atexit(clean_up);
        has_directory = true;
    }
    uint64_t record_bytes = cold_record_bytes(2 * 128 * 32 * 2);
    clean_files();
    if (data[0] == 's') {
        unsigned char *index;
        size_t bytes = sealed_index(data + 1, size - 1, record_bytes, &index);
        put_file("index", index, bytes, 0600);
        put_file("key", key, sizeof(key), 0600);
        free(index);
    } else if (data[0] == 'r') {
        put_file("index", data + 1, size - 1, 0600);
    } else if (data[0] == 'd') {
        char path[64];
        path_of("index", path);
        require(mkdir(path, 0700) == 0);
    } else {
        put_file("key", data + 1, size - 1, size > 1 && data[1] == 'p' ? 0644 : 0600);
    }
    open_directory();
    return 0;
}
