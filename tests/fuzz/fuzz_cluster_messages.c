/* fuzz_cluster_messages.c - what nodes of a cluster believe of each other, as it comes off the wire. The first byte
 * says which:
 *
 *   n  a node's record in etcd, JSON
 *   s  a coordinator's order to a worker, a Submit
 *   r  a worker's Report: events and load
 *   d  a worker's Description
 *   o  an Order, whatever it is
 *   g  etcd's answer to a read, and
 *   w  what its watch says: the records of nodes in them
 *   t  a node's NodeStatus */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/etcd.h"
#include "proto/membership.h"
#include "proto/node.pb-c.h"
#include "proto/worker_messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t read_sum; /* every byte that is lent is read, so that a sanitizer sees where it lies */

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static void read_bytes(const void *bytes, uint64_t count) {
    const unsigned char *b = bytes;
    for (uint64_t i = 0; i < count; i++) read_sum += b[i];
}

static void check_node(const char *text, size_t bytes) {
    membership_node node, again;
    hd_error error = {.text = ""};
    hd_status status = membership_node_decode(text, bytes, &node, &error);
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (status != HD_OK) return;
    read_bytes(membership_state_name(node.state), 1);
    bool has_version = membership_version(&node, &node) != 0;
    require(has_version == (node.version_min <= node.version_max && node.version_max != 0));
    require((membership_fits(&node, &node, &error) == HD_OK) == has_version);
    char *encoded = membership_node_encode(&node);
    require(encoded != NULL && membership_node_decode(encoded, strlen(encoded), &again, &error) == HD_OK);
    require(strcmp(node.id, again.id) == 0 && strcmp(node.model, again.model) == 0 && node.state == again.state &&
            node.kv_capacity == again.kv_capacity);
    free(encoded);
    snprintf(again.fingerprint, sizeof(again.fingerprint), "%s", "another");
    bool is_other = node.model[0] != '\0' && strcmp(node.fingerprint, again.fingerprint) != 0;
    if (has_version) require((membership_fits(&node, &again, &error) == HD_OK) == !is_other);
}

static void check_submit(const Hadal__Submit *message) {
    worker_request request;
    hd_error error = {.text = ""};
    if (worker_submit_decode(message, &request, &error) != HD_OK) {
        require(error.text[0] != '\0');
        return;
    }
    read_bytes(request.prompt_ids, request.prompt_count * sizeof(uint32_t));
    read_bytes(request.sampling.stop_ids, request.sampling.stop_id_count * sizeof(uint32_t));
    read_bytes(request.sampling.logit_bias, request.sampling.logit_bias_count * sizeof(worker_logit_bias));
    for (uint32_t i = 0; request.answers != NULL && i < request.choices; i++)
        read_bytes(request.answers[i].token_ids, request.answers[i].token_count * sizeof(uint32_t));
    require(request.selection == NULL || request.selection[0] != '\0');
    require(strlen(request.trace_id) == 0 || strlen(request.trace_id) == HD_TRACE_DIGITS);
    worker_submit_fini(&request);
}

/* An event that is believed is sent on, and is believed there. */
static void check_event(const Hadal__Event *message) {
    worker_event event, again;
    if (worker_event_decode(message, &event) != HD_OK) return;
    read_bytes(event.logprobs, (uint64_t)event.entry_count * event.logprob_count * sizeof(worker_logprob));
    size_t count = worker_event_pack(&event, message->id, NULL, 0);
    unsigned char *bytes = malloc(count);
    require(bytes != NULL && worker_event_pack(&event, message->id, bytes, count) == count);
    Hadal__Report *report = hadal__report__unpack(NULL, count, bytes);
    require(report != NULL && report->n_events == 1 && worker_event_decode(report->events[0], &again) == HD_OK);
    require(again.kind == event.kind && again.position == event.position && again.entry_count == event.entry_count);
    hadal__report__free_unpacked(report, NULL);
    free(bytes);
}

static void check_report(const Hadal__Report *message) {
    for (size_t i = 0; i < message->n_events; i++) check_event(message->events[i]);
    if (message->load == NULL) return;
    worker_load load, again;
    Hadal__Load encoded;
    worker_load_decode(message->load, &load);
    worker_load_encode(&load, &encoded);
    worker_load_decode(&encoded, &again);
    require(memcmp(&load, &again, sizeof(load)) == 0);
}

static void check_description(const Hadal__Description *message) {
    worker_info info;
    worker_info_decode(message, &info);
    read_bytes(info.eos_ids, info.eos_id_count * sizeof(*info.eos_ids));
    require(info.model_name != NULL && info.kernels != NULL && info.selection != NULL);
}

static void check_pair(const Etcdserverpb__KeyValue *pair) {
    if (pair == NULL) return;
    read_bytes(pair->key.data, pair->key.len);
    check_node((const char *)pair->value.data, pair->value.len);
}

static void check_read(const Etcdserverpb__RangeResponse *message) {
    for (size_t i = 0; i < message->n_kvs; i++) check_pair(message->kvs[i]);
}

static void check_watch(const Etcdserverpb__WatchResponse *message) {
    for (size_t i = 0; i < message->n_events; i++) check_pair(message->events[i]->kv);
}

static void check_status(const Hadal__NodeStatus *message) {
    read_bytes(message->id, strlen(message->id));
    read_bytes(message->role, strlen(message->role));
    read_bytes(message->state, strlen(message->state));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const uint8_t *bytes = data + 1;
    size_t count = size - 1;
    if (data[0] == 'n') check_node((const char *)bytes, count);
    if (data[0] == 's') {
        Hadal__Submit *message = hadal__submit__unpack(NULL, count, bytes);
        if (message != NULL) check_submit(message);
        if (message != NULL) hadal__submit__free_unpacked(message, NULL);
    }
    if (data[0] == 'r') {
        Hadal__Report *message = hadal__report__unpack(NULL, count, bytes);
        if (message != NULL) check_report(message);
        if (message != NULL) hadal__report__free_unpacked(message, NULL);
    }
    if (data[0] == 'd') {
        Hadal__Description *message = hadal__description__unpack(NULL, count, bytes);
        if (message != NULL) check_description(message);
        if (message != NULL) hadal__description__free_unpacked(message, NULL);
    }
    if (data[0] == 'o') {
        Hadal__Order *message = hadal__order__unpack(NULL, count, bytes);
        if (message != NULL && message->submit != NULL) check_submit(message->submit);
        if (message != NULL) hadal__order__free_unpacked(message, NULL);
    }
    if (data[0] == 'g') {
        Etcdserverpb__RangeResponse *message = etcdserverpb__range_response__unpack(NULL, count, bytes);
        if (message != NULL) check_read(message);
        if (message != NULL) etcdserverpb__range_response__free_unpacked(message, NULL);
    }
    if (data[0] == 'w') {
        Etcdserverpb__WatchResponse *message = etcdserverpb__watch_response__unpack(NULL, count, bytes);
        if (message != NULL) check_watch(message);
        if (message != NULL) etcdserverpb__watch_response__free_unpacked(message, NULL);
    }
    if (data[0] == 't') {
        Hadal__NodeStatus *message = hadal__node_status__unpack(NULL, count, bytes);
        if (message != NULL) check_status(message);
        if (message != NULL) hadal__node_status__free_unpacked(message, NULL);
    }
    return 0;
}
