/* api_keys.c - see api_keys.h. */
#include "coordinator/api_keys.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/log.h"

#define KEY_BYTES_MIN 8u
#define KEY_BYTES_MAX 512u
#define KEYS_MAX 65536u

typedef struct stored_key {
    unsigned char digest[32];
    api_tenant tenant;
} stored_key;

struct api_keys {
    unsigned char hash_key[32]; /* of this process: digests in a core file do not help to guess keys elsewhere */
    stored_key *keys;
    size_t count, capacity;
};

static void digest_of(const api_keys *keys, const char *key, size_t key_bytes, unsigned char digest[32]) {
    crypto_generichash(digest, 32, (const unsigned char *)key, key_bytes, keys->hash_key, sizeof(keys->hash_key));
}

static void salt_of(const char *key, size_t key_bytes, unsigned char salt[TENANT_SALT_BYTES]) {
    static const unsigned char purpose[] = "hadal tenant salt";
    crypto_generichash(salt, TENANT_SALT_BYTES, (const unsigned char *)key, key_bytes, purpose, sizeof(purpose) - 1);
}

static hd_status add_key(api_keys *keys, const char *key, size_t key_bytes, bool is_admin, hd_error *error) {
    if (keys->count == KEYS_MAX) return hd_error_set(error, HD_INVALID, "more than %u keys", KEYS_MAX);
    if (keys->count == keys->capacity) {
        size_t capacity = keys->capacity == 0 ? 16 : keys->capacity * 2;
        stored_key *grown = realloc(keys->keys, capacity * sizeof(*grown));
        if (grown == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for %zu keys", capacity);
        keys->keys = grown;
        keys->capacity = capacity;
    }
    stored_key *stored = &keys->keys[keys->count++];
    digest_of(keys, key, key_bytes, stored->digest);
    salt_of(key, key_bytes, stored->tenant.salt);
    stored->tenant.is_admin = is_admin;
    return HD_OK;
}

/* One line, its newline removed. */
static hd_status add_line(api_keys *keys, char *line, const char *path, size_t number, hd_error *error) {
    char *rest = NULL;
    char *key = strtok_r(line, " \t\r", &rest);
    if (key == NULL || key[0] == '#') return HD_OK;
    char *role = strtok_r(NULL, " \t\r", &rest);
    if (strlen(key) < KEY_BYTES_MIN || strlen(key) > KEY_BYTES_MAX) {
        return hd_error_set(error, HD_INVALID, "%s, line %zu: a key has %u to %u bytes", path, number, KEY_BYTES_MIN,
                            KEY_BYTES_MAX);
    }
    if (role != NULL && (strcmp(role, "admin") != 0 || strtok_r(NULL, " \t\r", &rest) != NULL)) {
        return hd_error_set(error, HD_INVALID, "%s, line %zu: only the word admin may follow a key", path, number);
    }
    return add_key(keys, key, strlen(key), role != NULL, error);
}

static hd_status read_file(api_keys *keys, FILE *file, const char *path, hd_error *error) {
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ssize_t length;
    hd_status status = HD_OK;
    while (status == HD_OK && (length = getline(&line, &capacity, file)) >= 0) {
        if (length > 0 && line[length - 1] == '\n') line[length - 1] = '\0';
        status = add_line(keys, line, path, ++number, error);
    }
    if (line != NULL) sodium_memzero(line, capacity);
    free(line);
    if (status == HD_OK && ferror(file)) status = hd_error_set(error, HD_IO, "%s: %s", path, strerror(errno));
    if (status == HD_OK && keys->count == 0) {
        status = hd_error_set(error, HD_INVALID, "%s has no keys: write one a line", path);
    }
    return status;
}

hd_status api_keys_open(const char *path, api_keys **out, hd_error *error) {
    if (sodium_init() < 0) return hd_error_set(error, HD_IO, "libsodium cannot be initialised");
    api_keys *keys = calloc(1, sizeof(*keys));
    if (keys == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the keys of %s", path);
    randombytes_buf(keys->hash_key, sizeof(keys->hash_key));
    FILE *file = fopen(path, "re");
    hd_status status = file != NULL ? read_file(keys, file, path, error)
                                    : hd_error_set(error, HD_IO, "--api-keys %s: %s", path, strerror(errno));
    struct stat info;
    if (file != NULL && fstat(fileno(file), &info) == 0 && (info.st_mode & S_IROTH) != 0) {
        char quoted[256];
        hd_log(HD_LOG_WARN, "keys_readable_by_all", "path=%s", hd_log_quote(path, quoted, sizeof(quoted)));
    }
    if (file != NULL) fclose(file);
    if (status == HD_OK) *out = keys;
    else api_keys_close(keys);
    return status;
}

void api_keys_close(api_keys *keys) {
    if (keys == NULL) return;
    free(keys->keys);
    free(keys);
}

size_t api_keys_count(const api_keys *keys) {
    return keys->count;
}

bool api_keys_find(const api_keys *keys, const char *authorization, api_tenant *tenant) {
    if (authorization == NULL || strncasecmp(authorization, "bearer ", 7) != 0) return false;
    const char *key = authorization + 7;
    while (*key == ' ') key++;
    size_t key_bytes = strlen(key);
    while (key_bytes > 0 && key[key_bytes - 1] == ' ') key_bytes--;
    unsigned char digest[32];
    digest_of(keys, key, key_bytes, digest);
    bool is_found = false;
    for (size_t i = 0; i < keys->count; i++) {
        if (sodium_memcmp(digest, keys->keys[i].digest, sizeof(digest)) != 0) continue;
        *tenant = keys->keys[i].tenant;
        is_found = true;
    }
    return is_found;
}

void api_tenant_mix(unsigned char salt[TENANT_SALT_BYTES], const char *cache_salt) {
    unsigned char mixed[TENANT_SALT_BYTES];
    crypto_generichash(mixed, sizeof(mixed), (const unsigned char *)cache_salt, strlen(cache_salt), salt,
                       TENANT_SALT_BYTES);
    memcpy(salt, mixed, sizeof(mixed));
}
