/* router_workers.c - connections to the workers that are announced, and the models that they bring. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "coordinator/router_state.h"
#include "proto/worker_messages.h"

#define RETRY_FIRST_MS 100u
#define RETRY_LAST_MS 2000u

static void connect_link(worker_link *link);

/* -- models -- */

static hd_status write_file(const char *directory, const Hadal__ModelFile *file, hd_error *error) {
    char path[512];
    /* The name came over a wire: it stays in its directory. */
    if (strchr(file->name, '/') != NULL || file->name[0] == '.' || file->name[0] == '\0')
        return hd_error_set(error, HD_CORRUPT, "a worker hands over a file named '%.60s'", file->name);
    snprintf(path, sizeof(path), "%s/%s", directory, file->name);
    FILE *out = fopen(path, "wb");
    bool is_written = out != NULL && fwrite(file->content.data, 1, file->content.len, out) == file->content.len;
    if (out != NULL && fclose(out) != 0) is_written = false;
    return is_written ? HD_OK : hd_error_set(error, HD_IO, "cannot write %s: %s", path, strerror(errno));
}

static void remove_files(const char *directory, const Hadal__Description *d) {
    char path[512];
    for (size_t i = 0; i < d->n_files; i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, d->files[i]->name);
        unlink(path);
    }
    rmdir(directory);
}

/* The tokenizer is read from a directory, and takes up to seconds: on a thread of its own. */
static void *open_text(void *context) {
    route_model *model = context;
    const char *temporary = getenv("TMPDIR");
    char directory[256];
    snprintf(directory, sizeof(directory), "%s/hadal-model-XXXXXX", temporary != NULL ? temporary : "/tmp");
    hd_status status = HD_OK;
    if (mkdtemp(directory) == NULL)
        status = hd_error_set(&model->problem, HD_IO, "cannot make %s: %s", directory, strerror(errno));
    for (size_t i = 0; status == HD_OK && i < model->description->n_files; i++)
        status = write_file(directory, model->description->files[i], &model->problem);
    if (status == HD_OK) text_model_open(directory, &model->text, &model->problem);
    remove_files(directory, model->description);
    rpc_queue_post(model->router->queue, &model->opened);
    return NULL;
}

static void on_opened(rpc_tag *tag, bool is_ok) {
    route_model *model = (route_model *)((char *)tag - offsetof(route_model, opened));
    router *r = model->router;
    const Hadal__Description *d = model->description;
    char text[600], name[300];
    hd_log_quote(d->model_name, name, sizeof(name));
    if (model->text == NULL) {
        hd_log(HD_LOG_ERROR, "model_refused", "model=%s reason=%s", name,
               hd_log_quote(model->problem.text, text, sizeof(text)));
        return;
    }
    worker_info info;
    worker_info_decode(d, &info);
    served_model_init(&model->served, &model->rpc, &info, model->text, NULL,
                      r->clock.wall_ns(r->clock.context) / 1000000000u);
    model->is_ready = model_set_add(r->config.models, &model->served) == HD_OK;
    hd_log(model->is_ready ? HD_LOG_INFO : HD_LOG_ERROR, model->is_ready ? "model_served" : "models_full",
           "model=%s context_max=%llu", name, (unsigned long long)d->context_max);
}

static route_model *new_model(router *r, const Hadal__Description *description) {
    route_model *model = calloc(1, sizeof(*model));
    size_t count = hadal__description__get_packed_size(description);
    unsigned char *bytes = malloc(count + 1);
    if (model != NULL && bytes != NULL) {
        hadal__description__pack(description, bytes);
        model->description = hadal__description__unpack(NULL, count, bytes);
    }
    free(bytes);
    if (model == NULL || model->description == NULL) {
        free(model);
        return NULL;
    }
    model->rpc.ops = &router_rpc_ops;
    model->router = r;
    model->opened.run = on_opened;
    pthread_mutex_init(&model->lock, NULL);
    model->next = r->models;
    r->models = model;
    model->has_opener = pthread_create(&model->opener, NULL, open_text, model) == 0;
    return model;
}

static bool is_same_model(const Hadal__Description *a, const Hadal__Description *b) {
    return a->fingerprint.len == b->fingerprint.len &&
           memcmp(a->fingerprint.data, b->fingerprint.data, a->fingerprint.len) == 0 &&
           a->vocabulary_size == b->vocabulary_size;
}

static bool gives_same_bits(const Hadal__Description *a, const Hadal__Description *b) {
    return strcmp(a->kernels, b->kernels) == 0 && strcmp(a->weights_dtype, b->weights_dtype) == 0 &&
           strcmp(a->kv_dtype, b->kv_dtype) == 0;
}

static void update_model_load(route_model *model) {
    worker_load sum = {0};
    for (const worker_link *link = model->router->links; link != NULL; link = link->next) {
        if (link->model != model || !link->is_connected) continue;
        sum.running += link->load.running;
        sum.waiting += link->load.waiting;
        sum.blocks_total += link->load.blocks_total;
        sum.blocks_sequences += link->load.blocks_sequences;
        sum.blocks_reserved += link->load.blocks_reserved;
        sum.blocks_cached += link->load.blocks_cached;
        sum.prefix_query_tokens += link->load.prefix_query_tokens;
        sum.prefix_hit_tokens += link->load.prefix_hit_tokens;
        sum.preemptions += link->load.preemptions;
        if (link->load.context_max > sum.context_max) sum.context_max = link->load.context_max;
    }
    pthread_mutex_lock(&model->lock);
    model->load = sum;
    pthread_mutex_unlock(&model->lock);
}

/* -- connections -- */

static bool is_announced_ready(const worker_link *link) {
    return link->is_connected && link->is_known && link->node.state == NODE_READY;
}

/* Of those whose announcements have vanished: etcd may have forgotten everybody, and who is connected is alive. */
static bool is_last_resort(const worker_link *link) {
    if (!link->is_connected || link->is_known || link->has_drained) return false;
    for (const worker_link *other = link->router->links; other != NULL; other = other->next) {
        if (other->model == link->model && is_announced_ready(other)) return false;
    }
    return true;
}

bool router_link_takes(const worker_link *link) {
    return is_announced_ready(link) || is_last_resort(link);
}

static void free_link(router *r, worker_link *link) {
    worker_link **at = &r->links;
    while (*at != link) at = &(*at)->next;
    *at = link->next;
    rpc_timer_cancel(r->queue, &link->retry);
    worker_remote_close(link->remote);
    free(link);
}

static void on_lost(void *context, hd_status status, const char *reason) {
    worker_link *link = context;
    char text[256];
    if (link->is_connected || link->failures == 0) {
        hd_log(HD_LOG_WARN, "worker_lost", "node=%s address=%s status=%s reason=%s", link->node.id, link->node.address,
               hd_status_name(status), hd_log_quote(reason, text, sizeof(text)));
    }
    link->is_connected = false;
    worker_remote_close(link->remote);
    link->remote = NULL;
    if (link->model != NULL) update_model_load(link->model);
    if (!link->is_known) {
        free_link(link->router, link);
        return;
    }
    uint64_t delay = RETRY_FIRST_MS << (link->failures < 5 ? link->failures : 5);
    link->failures++;
    rpc_timer_set(link->router->queue, &link->retry, delay < RETRY_LAST_MS ? delay : RETRY_LAST_MS);
}

static void on_retry(rpc_timer *timer) {
    connect_link((worker_link *)((char *)timer - offsetof(worker_link, retry)));
}

static void on_ready(void *context, const Hadal__Description *description) {
    worker_link *link = context;
    router *r = link->router;
    route_model *model = r->models;
    while (model != NULL && strcmp(model->description->model_name, description->model_name) != 0) model = model->next;
    if (model == NULL) model = new_model(r, description);
    if (model == NULL || !is_same_model(model->description, description)) {
        hd_log(HD_LOG_ERROR, "node_refused", "node=%s model=%s reason=\"other weights are served under this name\"",
               link->node.id, description->model_name);
        return; /* connected and never asked */
    }
    if (!gives_same_bits(model->description, description)) {
        hd_log(HD_LOG_WARN, "node_differs",
               "node=%s kernels=%s weights=%s kv=%s reason=\"a takeover may round elsewhere\"", link->node.id,
               description->kernels, description->weights_dtype, description->kv_dtype);
    }
    hd_log(HD_LOG_INFO, "worker_connected", "node=%s address=%s model=%s", link->node.id, link->node.address,
           description->model_name);
    if (link->node.model[0] == '\0') { /* of a list, which says nothing about it */
        snprintf(link->node.model, sizeof(link->node.model), "%s", description->model_name);
        link->node.kv_capacity = description->kv_bytes;
    }
    link->model = model;
    link->is_connected = true;
    link->failures = 0;
    link->is_full = false;
    router_run_waiting(r);
}

/* A worker says it itself as well: where there is no etcd, or none that answers, nobody else does. */
static void hear_draining(worker_link *link, bool is_draining) {
    if (!link->is_known || link->has_said_draining == is_draining) return;
    link->has_said_draining = is_draining;
    link->node.state = is_draining ? NODE_DRAINING : NODE_READY;
    if (is_draining && link->is_connected) router_move_from(link->router, link);
}

static void on_load(void *context, const worker_load *load) {
    worker_link *link = context;
    link->load = *load;
    hear_draining(link, load->is_draining != 0);
    link->is_full = false;
    if (link->model == NULL) return;
    update_model_load(link->model);
    router_run_waiting(link->router);
}

static void connect_link(worker_link *link) {
    static const worker_remote_handlers handlers = {.on_ready = on_ready, .on_lost = on_lost, .on_load = on_load};
    router *r = link->router;
    hd_error error;
    hd_status status =
        worker_remote_open(r->queue, link->node.address, r->config.tls, &handlers, link, &link->remote, &error);
    if (status == HD_OK) return;
    char text[600];
    hd_log(HD_LOG_ERROR, "worker_unreachable", "node=%s reason=%s", link->node.id,
           hd_log_quote(error.text, text, sizeof(text)));
    rpc_timer_set(r->queue, &link->retry, RETRY_LAST_MS);
}

/* -- membership -- */

static worker_link *find_link(router *r, const char *id) {
    worker_link *link = r->links;
    while (link != NULL && strcmp(link->node.id, id) != 0) link = link->next;
    return link;
}

static void on_worker(router *r, const membership_node *node) {
    worker_link *link = find_link(r, node->id);
    if (link != NULL && strcmp(link->node.address, node->address) != 0) {
        free_link(r, link); /* another process under its name; requests of the former go on elsewhere */
        link = NULL;
    }
    if (link != NULL) {
        link->node = *node;
        link->is_known = true;
        if (link->is_connected && node->state == NODE_DRAINING) router_move_from(r, link);
        if (node->state == NODE_READY) router_run_waiting(r);
        return;
    }
    link = calloc(1, sizeof(*link));
    if (link == NULL) return;
    *link = (worker_link){
        .router = r, .next = r->links, .name = r->next_link++, .node = *node, .is_known = true, .retry.run = on_retry};
    r->links = link;
    connect_link(link);
}

void router_on_node(void *context, const membership_node *node) {
    router *r = context;
    membership_node self = {
        .version_min = MEMBERSHIP_VERSION_MIN, .version_max = MEMBERSHIP_VERSION_MAX, .id = "coordinator"};
    hd_error error;
    if (membership_fits(&self, node, &error) != HD_OK) {
        char text[600];
        hd_log(HD_LOG_ERROR, "node_refused", "node=%s reason=%s", node->id,
               hd_log_quote(error.text, text, sizeof(text)));
        return;
    }
    if (strcmp(node->role, "worker") == 0) on_worker(r, node);
    else router_watch_node(r, node);
}

void router_on_gone(void *context, const char *id) {
    router *r = context;
    worker_link *link = find_link(r, id);
    if (link == NULL) {
        router_unwatch_node(r, id);
        return;
    }
    hd_log(HD_LOG_WARN, "node_gone", "node=%s running=%u", id, link->running);
    link->is_known = false;
    link->has_drained = link->node.state != NODE_READY;
    link->node.state = NODE_GONE;
    /* What runs there goes on while its connection stands. */
    if (!link->is_connected) free_link(r, link);
}

void router_close_links(router *r) {
    while (r->links != NULL) free_link(r, r->links);
}
