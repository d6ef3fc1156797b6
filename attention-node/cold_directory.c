/* cold_directory.c - three files and a lock. */
#include "attention-node/cold_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attention-node/cold_pages.h"
#include "base/fault.h"

#define FORMAT 3u
#define HEADER_BYTES 4096u
#define RECORD_MAGIC 0x6b636f6c62646c6fu

typedef struct {
    char magic[8];
    uint32_t format, kv_dtype, slot_count, extent_blocks;
    uint64_t record_bytes, block_bytes;
    unsigned char fingerprint[16];
    unsigned char table[16]; /* hash of the layer table, as far as it says what lies where */
    unsigned char seal[COLD_SEAL_BYTES];
} cold_header;
_Static_assert(sizeof(cold_header) == 88, "written as it lies in memory: no padding");
_Static_assert(sizeof(cold_record) == 640, "written as it lies in memory: no padding");

uint64_t cold_record_bytes(uint64_t block_bytes) {
    uint64_t sums = block_bytes / COLD_CHUNK_BYTES * sizeof(uint64_t);
    return HD_ALIGN_UP(sizeof(cold_record) + sums, (uint64_t)HEADER_BYTES);
}

uint32_t cold_slot_count(uint64_t size_bytes, uint64_t block_bytes) {
    if (size_bytes < HEADER_BYTES) return 0;
    uint64_t slots = (size_bytes - HEADER_BYTES) / (block_bytes + cold_record_bytes(block_bytes));
    if (slots > UINT32_MAX / 4) slots = UINT32_MAX / 4;
    return (uint32_t)(slots / EXTENT_BLOCKS * EXTENT_BLOCKS);
}

static void hash(const unsigned char *key, const void *bytes, size_t count, unsigned char out[16]) {
    crypto_generichash(out, 16, bytes, count, key, key != NULL ? IDENTITY_KEY_BYTES : 0);
}

static hd_status fail(const cold_directory *d, hd_error *error, hd_status status, const char *what) {
    return hd_error_set(error, status, "--cold-dir %s: %s: %s", d->path, what, strerrordesc_np(errno));
}

/* ---- Key and header ---- */

static hd_status make_key(cold_directory *d, hd_error *error) {
    if (getrandom(d->key, sizeof(d->key), 0) != (ssize_t)sizeof(d->key)) {
        return fail(d, error, HD_IO, "the system gave no random bytes");
    }
    /* Under another name first: half a key must not be found after a crash. */
    int file = openat(d->directory, "key.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return fail(d, error, HD_IO, "cannot make the file 'key'");
    bool is_written = write(file, d->key, sizeof(d->key)) == (ssize_t)sizeof(d->key) && fsync(file) == 0;
    is_written = close(file) == 0 && is_written && renameat(d->directory, "key.new", d->directory, "key") == 0;
    return is_written ? HD_OK : fail(d, error, HD_IO, "cannot write the file 'key'");
}

static hd_status read_key(cold_directory *d, hd_error *error) {
    int file = openat(d->directory, "key", O_RDONLY | O_CLOEXEC);
    if (file < 0 && errno == ENOENT) return make_key(d, error);
    if (file < 0) return fail(d, error, HD_IO, "cannot read the file 'key'");
    struct stat about;
    bool is_private = fstat(file, &about) == 0 && (about.st_mode & 077) == 0;
    bool is_whole = read(file, d->key, sizeof(d->key)) == (ssize_t)sizeof(d->key);
    close(file);
    if (!is_private) {
        return hd_error_set(error, HD_INVALID, "--cold-dir %s: others may read its file 'key'; chmod 600 it", d->path);
    }
    if (is_whole) return HD_OK;
    return hd_error_set(error, HD_CORRUPT, "--cold-dir %s: its file 'key' is cut short; empty the directory", d->path);
}

static void make_header(const cold_directory *d, const cold_config *config, const attention_layer_table *table,
                        cold_header *header) {
    *header = (cold_header){.magic = "hadalkv",
                            .format = FORMAT,
                            .kv_dtype = (uint32_t)config->kv_dtype,
                            .slot_count = d->slot_count,
                            .extent_blocks = EXTENT_BLOCKS,
                            .record_bytes = d->record_bytes,
                            .block_bytes = d->block_bytes};
    memcpy(header->fingerprint, config->fingerprint, sizeof(header->fingerprint));
    crypto_generichash_state state;
    crypto_generichash_init(&state, NULL, 0, sizeof(header->table));
    for (uint32_t i = 0; i < table->stream_count; i++) {
        const attention_stream *s = &table->streams[i];
        uint64_t text[] = {s->owner_layer, s->heads, s->dim, (uint64_t)s->codec, s->tokens_per_record};
        crypto_generichash_update(&state, (const unsigned char *)text, sizeof(text));
    }
    for (uint32_t i = 0; i < table->layer_count; i++) {
        uint64_t text[] = {table->layers[i].key_stream, table->layers[i].value_stream};
        crypto_generichash_update(&state, (const unsigned char *)text, sizeof(text));
    }
    crypto_generichash_final(&state, header->table, sizeof(header->table));
    hash(d->key, header, sizeof(*header) - COLD_SEAL_BYTES, header->seal);
}

/* What was written under the same key for something else is somebody's cache, and not ours to delete. */
static hd_status check_header(const cold_directory *d, const cold_header *there, const cold_header *wanted,
                              hd_error *error) {
    const char *other = NULL;
    unsigned char seal[COLD_SEAL_BYTES];
    hash(d->key, there, sizeof(*there) - COLD_SEAL_BYTES, seal);
    if (memcmp(there->magic, wanted->magic, sizeof(there->magic)) != 0) other = "something else";
    else if (there->format != wanted->format) other = "pages of another format number";
    else if (memcmp(seal, there->seal, sizeof(seal)) != 0) other = "an index that its key does not fit";
    else if (memcmp(there->fingerprint, wanted->fingerprint, sizeof(there->fingerprint)) != 0)
        other = "pages of another model's weights";
    else if (there->kv_dtype != wanted->kv_dtype) other = "pages of another --kv-dtype";
    else if (memcmp(there->table, wanted->table, sizeof(there->table)) != 0 ||
             there->record_bytes != wanted->record_bytes || there->block_bytes != wanted->block_bytes ||
             there->extent_blocks != wanted->extent_blocks)
        other = "pages of another layer table";
    if (other == NULL) return HD_OK;
    return hd_error_set(error, HD_INVALID, "--cold-dir %s holds %s; empty it, or name another directory", d->path,
                        other);
}

static hd_status open_index(cold_directory *d, const cold_config *config, const attention_layer_table *table,
                            hd_error *error) {
    cold_header wanted, there;
    make_header(d, config, table, &wanted);
    ssize_t got = pread(d->index, &there, sizeof(there), 0);
    if (got < 0) return fail(d, error, HD_IO, "cannot read the file 'index'");
    hd_status status = got == (ssize_t)sizeof(there) ? check_header(d, &there, &wanted, error) : HD_OK;
    if (status != HD_OK) return status;
    uint64_t bytes = HEADER_BYTES + d->slot_count * d->record_bytes;
    if (pwrite(d->index, &wanted, sizeof(wanted), 0) != (ssize_t)sizeof(wanted) ||
        ftruncate(d->index, (off_t)bytes) != 0)
        return fail(d, error, HD_IO, "cannot write the file 'index'");
    return HD_OK;
}

hd_status cold_directory_open(cold_directory *d, const cold_config *config, const attention_layer_table *table,
                              const block_layout *layout, hd_error *error) {
    *d = (cold_directory){.directory = -1, .index = -1, .pages = -1};
    snprintf(d->path, sizeof(d->path), "%s", config->directory);
    d->block_bytes = layout->block_bytes;
    d->record_bytes = cold_record_bytes(layout->block_bytes);
    d->slot_count = cold_slot_count(config->size_bytes, layout->block_bytes);
    if (mkdir(d->path, 0700) != 0 && errno != EEXIST) return fail(d, error, HD_IO, "cannot make it");
    d->directory = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->directory < 0) return fail(d, error, HD_IO, "cannot open it");
    d->index = openat(d->directory, "index", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->index < 0) return fail(d, error, HD_IO, "cannot open the file 'index'");
    if (flock(d->index, LOCK_EX | LOCK_NB) != 0) {
        return hd_error_set(error, HD_INVALID, "--cold-dir %s is in use by another process; name another directory",
                            d->path);
    }
    hd_status status = read_key(d, error);
    if (status == HD_OK) status = open_index(d, config, table, error);
    if (status == HD_OK)
        status =
            cold_pages_open(d->directory, d->path, d->block_bytes, d->slot_count, &d->pages, &d->grain_bytes, error);
    return status;
}

static void close_file(int *file) {
    if (*file >= 0) close(*file);
    *file = -1;
}

void cold_directory_close(cold_directory *d) {
    close_file(&d->pages);
    close_file(&d->index);
    close_file(&d->directory);
}

/* ---- Records ---- */

static off_t record_offset(const cold_directory *d, uint32_t slot) {
    return (off_t)(HEADER_BYTES + slot * d->record_bytes);
}

hd_status cold_directory_put_record(cold_directory *d, uint32_t slot, cold_record *record) {
    record->magic = RECORD_MAGIC;
    record->slot = slot;
    memset(record->seal, 0, sizeof(record->seal));
    unsigned char seal[COLD_SEAL_BYTES];
    hash(d->key, record, d->record_bytes, seal);
    memcpy(record->seal, seal, sizeof(seal));
    if (fault_strikes(FAULT_WRITE)) return HD_IO;
    ssize_t bytes = (ssize_t)d->record_bytes;
    return pwrite(d->index, record, (size_t)bytes, record_offset(d, slot)) == bytes ? HD_OK : HD_IO;
}

hd_status cold_directory_clear_record(cold_directory *d, uint32_t slot) {
    static const unsigned char nothing[sizeof(uint64_t)];
    if (fault_strikes(FAULT_WRITE)) return HD_IO;
    ssize_t bytes = sizeof(nothing);
    return pwrite(d->index, nothing, (size_t)bytes, record_offset(d, slot)) == bytes ? HD_OK : HD_IO;
}

hd_status cold_directory_get_record(const cold_directory *d, uint32_t slot, cold_record *record) {
    ssize_t bytes = (ssize_t)d->record_bytes;
    if (pread(d->index, record, (size_t)bytes, record_offset(d, slot)) != bytes) return HD_NOT_FOUND;
    if (record->magic != RECORD_MAGIC || record->slot != slot) return HD_NOT_FOUND;
    unsigned char there[COLD_SEAL_BYTES], seal[COLD_SEAL_BYTES];
    memcpy(there, record->seal, sizeof(there));
    memset(record->seal, 0, sizeof(record->seal));
    hash(d->key, record, d->record_bytes, seal);
    return memcmp(there, seal, sizeof(seal)) == 0 ? HD_OK : HD_NOT_FOUND;
}
