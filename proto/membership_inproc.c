/* membership_inproc.c - a list of nodes that the members of one process share. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/membership.h"

typedef struct listed_node {
    struct listed_node *next;
    membership_node node;
} listed_node;

typedef struct membership_inproc {
    membership base; /* first */
    membership_hub *hub;
    struct membership_inproc *next;
    membership_handlers handlers;
    void *context;
    char announced[MEMBERSHIP_NAME_BYTES]; /* "": nothing */
} membership_inproc;

struct membership_hub {
    listed_node *nodes;
    membership_inproc *members;
};

hd_status membership_hub_open(membership_hub **out) {
    *out = calloc(1, sizeof(**out));
    return *out != NULL ? HD_OK : HD_NO_MEMORY;
}

void membership_hub_close(membership_hub *hub) {
    if (hub == NULL) return;
    assert(hub->members == NULL);
    while (hub->nodes != NULL) membership_hub_remove(hub, hub->nodes->node.id);
    free(hub);
}

void membership_hub_put(membership_hub *hub, const membership_node *node) {
    listed_node *listed = hub->nodes;
    while (listed != NULL && strcmp(listed->node.id, node->id) != 0) listed = listed->next;
    if (listed == NULL) {
        listed = calloc(1, sizeof(*listed));
        if (listed == NULL) return;
        listed->next = hub->nodes;
        hub->nodes = listed;
    }
    listed->node = *node;
    for (membership_inproc *m = hub->members; m != NULL; m = m->next) {
        if (m->handlers.on_node != NULL) m->handlers.on_node(m->context, node);
    }
}

void membership_hub_remove(membership_hub *hub, const char *id) {
    for (listed_node **at = &hub->nodes; *at != NULL; at = &(*at)->next) {
        listed_node *listed = *at;
        if (strcmp(listed->node.id, id) != 0) continue;
        *at = listed->next;
        for (membership_inproc *m = hub->members; m != NULL; m = m->next) {
            if (m->handlers.on_gone != NULL) m->handlers.on_gone(m->context, listed->node.id);
        }
        free(listed);
        return;
    }
}

static hd_status inproc_follow(membership *self, const membership_handlers *handlers, void *context) {
    membership_inproc *m = (membership_inproc *)self;
    m->handlers = *handlers;
    m->context = context;
    for (listed_node *listed = m->hub->nodes; listed != NULL; listed = listed->next) {
        if (m->handlers.on_node != NULL) m->handlers.on_node(context, &listed->node);
    }
    if (m->handlers.on_connection != NULL) m->handlers.on_connection(context, true);
    return HD_OK;
}

static hd_status inproc_announce(membership *self, const membership_node *node) {
    membership_inproc *m = (membership_inproc *)self;
    memcpy(m->announced, node->id, sizeof(m->announced));
    membership_hub_put(m->hub, node);
    return HD_OK;
}

static void inproc_close(membership *self) {
    membership_inproc *m = (membership_inproc *)self;
    membership_inproc **at = &m->hub->members;
    while (*at != m) at = &(*at)->next;
    *at = m->next;
    if (m->announced[0] != '\0') membership_hub_remove(m->hub, m->announced);
    free(m);
}

static const membership_ops ops = {
    .name = "in process", .close = inproc_close, .follow = inproc_follow, .announce = inproc_announce};

hd_status membership_inproc_open(membership_hub *hub, membership **out) {
    membership_inproc *m = calloc(1, sizeof(*m));
    if (m == NULL) return HD_NO_MEMORY;
    m->base.ops = &ops;
    m->hub = hub;
    m->next = hub->members;
    hub->members = m;
    *out = &m->base;
    return HD_OK;
}
