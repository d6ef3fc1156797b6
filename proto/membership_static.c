/* membership_static.c - a list that was given, as a hub that nobody adds to. */
#include <stdio.h>
#include <string.h>

#include "proto/membership.h"

static bool is_role(const char *text) {
    return strcmp(text, "coordinator") == 0 || strcmp(text, "worker") == 0 || strcmp(text, "attention-node") == 0;
}

static bool has_name(const char *text) {
    return text[0] != '\0' && strlen(text) < MEMBERSHIP_NAME_BYTES && strpbrk(text, "/ \t\n\"\\") == NULL;
}

/* [NAME=]ROLE@HOST:PORT, which is cut up. */
static hd_status read_node(char *item, membership_node *node, hd_error *error) {
    char whole[160];
    snprintf(whole, sizeof(whole), "%.150s", item);
    char *equals = strchr(item, '='), *role = equals != NULL ? equals + 1 : item, *at = strchr(role, '@');
    if (equals != NULL) *equals = '\0';
    if (at != NULL) *at = '\0';
    const char *address = at != NULL ? at + 1 : "", *name = equals != NULL ? item : address,
               *colon = strrchr(address, ':');
    bool is_node = is_role(role) && has_name(name) && colon != NULL && colon != address && colon[1] != '\0' &&
                   strlen(address) < sizeof(node->address);
    if (!is_node)
        return hd_error_set(
            error, HD_INVALID,
            "--nodes: '%s' is not [NAME=]ROLE@HOST:PORT, with a role of coordinator, worker, attention-node", whole);
    *node = (membership_node){.version_min = MEMBERSHIP_VERSION_MIN, .version_max = MEMBERSHIP_VERSION_MAX};
    strcpy(node->id, name); /* all three fit */
    strcpy(node->role, role);
    strcpy(node->address, address);
    return HD_OK;
}

hd_status membership_static_read(const char *list, membership_node *nodes, uint32_t nodes_max, uint32_t *count,
                                 hd_error *error) {
    uint32_t read = 0;
    for (const char *next = list; next != NULL;) {
        const char *comma = strchr(next, ',');
        char item[MEMBERSHIP_NAME_BYTES + RPC_ADDRESS_BYTES + 32];
        size_t bytes = comma != NULL ? (size_t)(comma - next) : strlen(next);
        if (bytes >= sizeof(item)) return hd_error_set(error, HD_INVALID, "--nodes: '%.60s...' is too long", next);
        if (read == nodes_max)
            return hd_error_set(error, HD_INVALID, "--nodes: more than %u nodes; use --etcd", nodes_max);
        snprintf(item, sizeof(item), "%.*s", (int)bytes, next);
        hd_status status = read_node(item, &nodes[read], error);
        if (status != HD_OK) return status;
        for (uint32_t i = 0; i < read; i++) {
            if (strcmp(nodes[i].id, nodes[read].id) == 0)
                return hd_error_set(error, HD_INVALID, "--nodes: two nodes are named '%s'", nodes[i].id);
        }
        read++;
        next = comma != NULL ? comma + 1 : NULL;
    }
    *count = read;
    return HD_OK;
}
