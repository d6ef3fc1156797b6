/* rpc_channel.c - connections and certificates. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/grpc_security.h>

#include "proto/rpc_internal.h"

#define KEEP_ALIVE_MS 2000u
#define DEAD_AFTER_MS 2000u
#define RECONNECT_FIRST_MS 100
#define RECONNECT_LAST_MS 2000
#define CONNECT_MS 1000 /* gRPC gives an attempt at least so long */
#define PEM_BYTES_MAX (1u << 20)

hd_status rpc_address_check(const char *address, hd_error *error) {
    if (address == NULL || strlen(address) >= RPC_ADDRESS_BYTES)
        return hd_error_set(error, HD_INVALID, "an address is HOST:PORT or unix:PATH, at most %u characters",
                            RPC_ADDRESS_BYTES - 1);
    if (strncmp(address, "unix:", 5) == 0 && address[5] != '\0') return HD_OK;
    const char *colon = strrchr(address, ':');
    char *end = NULL;
    long port = colon != NULL && colon != address ? strtol(colon + 1, &end, 10) : -1;
    if (end == NULL || *end != '\0' || end == colon + 1 || port < 0 || port > 65535)
        return hd_error_set(error, HD_INVALID, "'%s' is not an address: HOST:PORT or unix:PATH", address);
    return HD_OK;
}

/* -- certificates -- */

static hd_status read_pem(const char *what, const char *path, char **out, hd_error *error) {
    if (path == NULL) return HD_OK;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return hd_error_set(error, HD_INVALID, "%s: cannot read %s: %s", what, path, strerror(errno));
    char *text = malloc(PEM_BYTES_MAX + 1);
    size_t count = text != NULL ? fread(text, 1, PEM_BYTES_MAX + 1, file) : 0;
    fclose(file);
    if (text == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for %s", path);
    if (count <= PEM_BYTES_MAX) text[count] = '\0';
    if (count > PEM_BYTES_MAX || strstr(text, "-----BEGIN ") == NULL) {
        free(text);
        return hd_error_set(error, HD_INVALID, "%s: %s is not a PEM file", what, path);
    }
    *out = text;
    return HD_OK;
}

hd_status rpc_tls_open(const char *cert_path, const char *key_path, const char *ca_path, rpc_tls **out,
                       hd_error *error) {
    if ((cert_path == NULL) != (key_path == NULL))
        return hd_error_set(error, HD_INVALID, "--tls-cert and --tls-key go together: give both");
    rpc_tls *tls = calloc(1, sizeof(*tls));
    if (tls == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for certificates");
    hd_status status = read_pem("--tls-cert", cert_path, &tls->cert, error);
    if (status == HD_OK) status = read_pem("--tls-key", key_path, &tls->key, error);
    if (status == HD_OK) status = read_pem("--tls-ca", ca_path, &tls->ca, error);
    if (status == HD_OK) *out = tls;
    else rpc_tls_close(tls);
    return status;
}

void rpc_tls_close(rpc_tls *tls) {
    if (tls == NULL) return;
    free(tls->cert);
    if (tls->key != NULL) explicit_bzero(tls->key, strlen(tls->key));
    free(tls->key);
    free(tls->ca);
    free(tls);
}

/* -- channels -- */

static grpc_arg integer(const char *key, uint64_t value) {
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = (int)value};
}

static grpc_channel_credentials *credentials_of(const rpc_tls *tls) {
    if (tls == NULL) return grpc_insecure_credentials_create();
    grpc_ssl_pem_key_cert_pair pair = {.private_key = tls->key, .cert_chain = tls->cert};
    return grpc_ssl_credentials_create(tls->ca, tls->cert != NULL ? &pair : NULL, NULL, NULL);
}

hd_status rpc_channel_open(const rpc_channel_config *config, rpc_channel **out, hd_error *error) {
    hd_status status = rpc_address_check(config->address, error);
    if (status != HD_OK) return status;
    rpc_channel *c = calloc(1, sizeof(*c));
    if (c == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a connection to %s", config->address);
    rpc_library_open();
    uint64_t message_bytes_max = config->message_bytes_max != 0 ? config->message_bytes_max : RPC_MESSAGE_BYTES_MAX;
    grpc_arg list[] = {
        integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, message_bytes_max),
        integer(GRPC_ARG_KEEPALIVE_TIME_MS, config->keep_alive_ms != 0 ? config->keep_alive_ms : KEEP_ALIVE_MS),
        integer(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, config->dead_after_ms != 0 ? config->dead_after_ms : DEAD_AFTER_MS),
        integer(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0),
        integer(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        integer(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RECONNECT_FIRST_MS),
        integer(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_MS),
        integer(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RECONNECT_LAST_MS),
        /* Retries would keep copies of what was sent; who may be asked again is the caller's to know. */
        integer(GRPC_ARG_ENABLE_RETRIES, 0),
        /* Channels to one address would share one connection, and pages would queue in front of steps. */
        integer(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        integer(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        {.type = GRPC_ARG_STRING,
         .key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
         .value.string = (char *)config->tls_name},
    };
    grpc_channel_args arguments = {sizeof(list) / sizeof(list[0]) - (config->tls_name == NULL), list};
    grpc_channel_credentials *credentials = credentials_of(config->tls);
    if (credentials != NULL) c->channel = grpc_channel_create(config->address, credentials, &arguments);
    grpc_channel_credentials_release(credentials);
    if (c->channel == NULL) {
        rpc_channel_close(c);
        return hd_error_set(error, HD_INVALID, "no connection can be made to %s with these certificates",
                            config->address);
    }
    *out = c;
    return HD_OK;
}

void rpc_channel_close(rpc_channel *channel) {
    if (channel == NULL) return;
    if (channel->channel != NULL) grpc_channel_destroy(channel->channel);
    free(channel);
    rpc_library_close();
}
