/* membership.c - what all implementations share: the record of a node, and who fits to whom. */
#include "proto/membership.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const state_names[] = {[NODE_READY] = "ready", [NODE_DRAINING] = "draining", [NODE_GONE] = "gone"};

const char *membership_state_name(membership_state state) {
    return state_names[state];
}

uint32_t membership_version(const membership_node *a, const membership_node *b) {
    uint32_t highest = a->version_max < b->version_max ? a->version_max : b->version_max;
    uint32_t lowest = a->version_min > b->version_min ? a->version_min : b->version_min;
    return highest >= lowest ? highest : 0;
}

hd_status membership_fits(const membership_node *node, const membership_node *other, hd_error *error) {
    if (membership_version(node, other) == 0) {
        return hd_error_set(error, HD_INVALID,
                            "node %s speaks protocol versions %u to %u, node %s at %s %u to %u: upgrade the older",
                            node->id, node->version_min, node->version_max, other->id, other->address,
                            other->version_min, other->version_max);
    }
    bool is_same_model = node->model[0] != '\0' && strcmp(node->model, other->model) == 0;
    if (is_same_model && strcmp(node->fingerprint, other->fingerprint) != 0) {
        return hd_error_set(
            error, HD_INVALID,
            "node %s serves other weights under the name '%s' (%.16s here, %.16s there): give one of them another "
            "--model-name",
            other->id, node->model, node->fingerprint, other->fingerprint);
    }
    return HD_OK;
}

typedef struct text_field {
    const char *name;
    size_t offset, bytes;
} text_field;

#define FIELD(member)                                                                                                  \
    { #member, offsetof(membership_node, member), sizeof(((membership_node *)0)->member) }
static const text_field text_fields[] = {FIELD(id),          FIELD(role),    FIELD(address),       FIELD(model),
                                         FIELD(fingerprint), FIELD(kernels), FIELD(weights_dtype), FIELD(kv_dtype)};
#define TEXT_FIELDS (sizeof(text_fields) / sizeof(text_fields[0]))

char *membership_node_encode(const membership_node *node) {
    json_t *object = json_object();
    for (size_t i = 0; i < TEXT_FIELDS; i++)
        json_object_set_new(object, text_fields[i].name, json_string((const char *)node + text_fields[i].offset));
    json_object_set_new(object, "kv_capacity", json_integer((json_int_t)node->kv_capacity));
    json_object_set_new(object, "version_min", json_integer(node->version_min));
    json_object_set_new(object, "version_max", json_integer(node->version_max));
    json_object_set_new(object, "state", json_string(state_names[node->state]));
    char *text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    return text;
}

static hd_status decode_text(const json_t *object, const text_field *field, membership_node *node, hd_error *error) {
    const char *text = json_string_value(json_object_get(object, field->name));
    if (text == NULL || strlen(text) >= field->bytes)
        return hd_error_set(error, HD_CORRUPT, "the record of a node has no '%s', or one that is too long",
                            field->name);
    memcpy((char *)node + field->offset, text, strlen(text) + 1);
    return HD_OK;
}

static hd_status decode_number(const json_t *object, const char *name, uint64_t most, uint64_t *number,
                               hd_error *error) {
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) > most)
        return hd_error_set(error, HD_CORRUPT, "the record of a node has no '%s' that is a number in range", name);
    *number = (uint64_t)json_integer_value(value);
    return HD_OK;
}

hd_status membership_node_decode(const char *text, size_t bytes, membership_node *node, hd_error *error) {
    json_t *object = json_loadb(text, bytes, 0, NULL);
    *node = (membership_node){.state = NODE_GONE};
    hd_status status =
        json_is_object(object) ? HD_OK : hd_error_set(error, HD_CORRUPT, "the record of a node is not JSON");
    for (size_t i = 0; status == HD_OK && i < TEXT_FIELDS; i++)
        status = decode_text(object, &text_fields[i], node, error);
    uint64_t lowest = 0, highest = 0;
    if (status == HD_OK) status = decode_number(object, "kv_capacity", INT64_MAX, &node->kv_capacity, error);
    if (status == HD_OK) status = decode_number(object, "version_min", UINT32_MAX, &lowest, error);
    if (status == HD_OK) status = decode_number(object, "version_max", UINT32_MAX, &highest, error);
    if (status == HD_OK) {
        node->version_min = (uint32_t)lowest;
        node->version_max = (uint32_t)highest;
        const char *state = json_string_value(json_object_get(object, "state"));
        for (int i = NODE_READY; state != NULL && i <= NODE_DRAINING; i++) {
            if (strcmp(state, state_names[i]) == 0) node->state = (membership_state)i;
        }
        if (node->state == NODE_GONE) status = hd_error_set(error, HD_CORRUPT, "the record of a node has no 'state'");
    }
    json_decref(object);
    return status;
}
