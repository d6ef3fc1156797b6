/* page_mover.h - copies blocks between attention nodes, beside the steps: a thread and connections of its own.
 *
 * The node that is to have a sequence fetches it (page_frames.h): full blocks while the sequence's owner goes on
 * decoding at the other node, then, between two of the owner's steps, the rest.
 *
 *   a pull: LOOKING --> OPENING (by the engine's thread) --> COPYING --pull with the length, and everything is here-->
 *           the sequence is like any other, the pull gone
 *           any --an error--> FAILED --told to the owner--> gone
 *
 *   1. The mover's thread does I/O, checksums and copies; the engine's thread alone changes what sequences have
 *      (page_mover_tend). They meet under one lock, which neither holds while it copies or waits.
 *   2. Blocks that are fetched from here are held until the link ends: closing their sequence frees nothing under way.
 *   3. A link that is lost is made again twice; whole blocks stay. What fails keeps its blocks as prefix cache, so that
 *      the next attempt begins there.
 *   4. As many bytes are on their way as keep a link busy and no more (copy_window.h), of the eldest pull first. While an owner stands between
 *      two steps, its pull alone asks for more.
 * Threads: as each function says. */
#ifndef ATTENTION_NODE_PAGE_MOVER_H
#define ATTENTION_NODE_PAGE_MOVER_H

#include "attention-node/attention.h"
#include "attention-node/page_frames.h"
#include "proto/transport.h"

typedef struct page_mover page_mover;

typedef struct page_mover_config {
    transport *transport;        /* lent; its listener of the channel "pages" is page_mover_accept */
    void (*wake)(void *context); /* page_mover_tend has work; any thread */
    void *context;
    uint64_t window_min, window_max, window_delay_ns; /* of all pulls together, as copy_window.h; 0: defaults */
} page_mover_config;

typedef struct page_mover_stats {
    uint64_t bytes_in, bytes_out; /* of pages, since open */
    uint32_t pulls, links;        /* going on now; links that fetch from here */
} page_mover_stats;

hd_status page_mover_open(const page_mover_config *config, page_mover **out);
hd_status page_mover_accept(void *mover, transport_link *link, transport_handlers *handlers, void **context);
/* A thread drives the transport from now on. Without it somebody calls page_mover_poll: true when something came. */
hd_status page_mover_start(page_mover *mover);
bool page_mover_poll(page_mover *mover, uint64_t timeout_ns);
/* On the engine's thread, the engine still open: ends the thread and every link. Accepts NULL. */
void page_mover_close(page_mover *mover);

/* ---- On the engine's thread ---- */

/* What is kept here from now on. The engine is lent until it is unserved, which ends every link and pull. */
void page_mover_serve(page_mover *mover, attention *engine, const wire_pages_hello *own);
void page_mover_unserve(page_mover *mover);
/* Opens, extends and commits what has come, holds and gives back what is fetched from here. Cheap where there is no
 * news. */
void page_mover_tend(page_mover *mover);
/* As attention_ops.sequence_pull, without waiting. owner: page_mover_drop_owner's. */
hd_status page_mover_pull(page_mover *mover, const attention_pull *pull, const void *owner, uint64_t *tokens,
                          hd_error *error);
/* A pull that is given up; its sequence is closed, and nothing happens where there is none. */
void page_mover_drop(page_mover *mover, uint64_t sequence);
void page_mover_drop_owner(page_mover *mover, const void *owner);
void page_mover_stats_read(page_mover *mover, page_mover_stats *stats); /* any thread */

#endif
