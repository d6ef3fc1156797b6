/* api_keys.h - who may use the API: bearer keys from a file, and each key's tenant salt.
 *
 * The file has one key a line; the word "admin" after it lets the key do what concerns every tenant (empty the prefix
 * cache). Blank lines and lines that begin with # are skipped. Only keyed hashes are kept, and all of them are
 * compared, so the time that a look-up takes says nothing of the keys. A tenant's salt is a hash of its key alone: it
 * is the same after a restart, so that its cached blocks are found again, and no two keys share blocks.
 * Threads: read only once open. */
#ifndef COORDINATOR_API_KEYS_H
#define COORDINATOR_API_KEYS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define TENANT_SALT_BYTES 16u

typedef struct api_keys api_keys;
typedef struct api_tenant {
    unsigned char salt[TENANT_SALT_BYTES];
    bool is_admin;
} api_tenant;

hd_status api_keys_open(const char *path, api_keys **keys, hd_error *error);
void api_keys_close(api_keys *keys); /* accepts NULL */
size_t api_keys_count(const api_keys *keys);

/* The Authorization header's value ("Bearer KEY"; may be NULL). False: no such key. */
bool api_keys_find(const api_keys *keys, const char *authorization, api_tenant *tenant);

/* The salt of a request that brings one of its own: a tenant's users can be kept apart as well. */
void api_tenant_mix(unsigned char salt[TENANT_SALT_BYTES], const char *cache_salt);

#endif
