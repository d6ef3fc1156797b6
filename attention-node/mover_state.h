/* mover_state.h - what a mover of pages consists of; for page_mover.c, page_export.c and page_import.c only. */
#ifndef ATTENTION_NODE_MOVER_STATE_H
#define ATTENTION_NODE_MOVER_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attention-node/block_copy.h"
#include "attention-node/copy_window.h"
#include "attention-node/engine_blocks.h"
#include "attention-node/page_mover.h"
#include "attention-node/selection.h"

#define MOVER_ASKED_MAX 96u /* pieces of a pull on their way */
#define MOVER_ANSWERS 128u  /* of a link, more than a pull asks for at once */
/* Blocks that have memory and are not whole. The engine's thread makes them between the layers of others' steps, so
 * they have to last for a layer. */
#define MOVER_GRANTS 64u
#define MOVER_GRANTS_LEAST 4u
#define MOVER_GRANTED_BYTES ((uint64_t)64 << 20)
#define MOVER_COPIES 2u /* pulls at once; others wait for their turn */
#define MOVER_LOOK_NS 10000000ull
#define MOVER_RELINKS 2u

typedef struct page_answer {
    transport_send send;
    char sentence[256];
    wire_look look;
    wire_piece piece;
    uint64_t checksums[PAGES_UNITS_MAX * ENGINE_UNIT_PAGES_MAX];
    void *room; /* of tokens, or of pages that cannot be lent; freed with the next answer here */
} page_answer;

/* A link of a node that fetches from here. */
typedef struct page_export {
    page_mover *mover;
    struct page_export *next;
    transport_link *link; /* NULL: disconnected */
    bool is_greeted, is_ended;
    uint64_t name, epoch;
    /* Held blocks; the engine's thread appends. */
    block_name *blocks;
    identity *chain;
    uint32_t *tokens; /* 128 each */
    uint32_t count, room;
    identity root, tail_chain;
    engine_look look;
    unsigned char *tail;
    uint32_t tail_tokens[HD_BLOCK_TOKENS], tail_count;
    bool has_tail;
    /* The LOOK that waits for the engine's thread, or has its answer. */
    bool is_asked, is_looked;
    uint64_t look_tag, look_wanted;
    uint32_t look_first;
    hd_status look_status;
    hd_error look_error;
    page_answer *answers; /* [MOVER_ANSWERS] */
} page_export;

typedef enum { IMPORT_LOOKING, IMPORT_OPENING, IMPORT_COPYING, IMPORT_FAILED, IMPORT_OVER } import_state;

typedef struct page_asked {
    transport_send send;
    block_piece piece;
    uint64_t bytes, asked_ns;
    bool is_used; /* its answer has not come */
} page_asked;

typedef struct page_import {
    page_mover *mover;
    struct page_import *next;
    transport_link *link;
    char address[RPC_ADDRESS_BYTES], selection[SELECTION_TEXT_BYTES];
    attention_sequence_params params;
    const void *owner;
    import_state state;
    hd_status status; /* FAILED */
    hd_error error;
    bool is_open;                /* the engine has the sequence */
    bool is_greeted, has_looked; /* of this link: HELLO and a LOOK have been answered */
    uint32_t relinks;
    uint64_t link_ns; /* not before */
    /* What the source has. */
    bool is_looking;
    transport_send call; /* HELLO and LOOK */
    uint64_t look_ns;    /* the next one, not before */
    wire_look look;
    wire_pages_hello hello; /* as it is sent */
    uint32_t *tokens;       /* of known blocks */
    identity *chain;
    identity root, tail_chain;
    uint64_t known, known_room;
    uint32_t tail_tokens[HD_BLOCK_TOKENS], tail_count;
    bool has_tail, needs_rollback;
    uint64_t wanted; /* tokens from the range's first on, at the switch */
    bool has_wanted, is_wanted_looked;
    /* What has come. */
    block_copy copy;
    uint64_t committed;
    uint32_t grants[MOVER_GRANTS]; /* of block b at b % MOVER_GRANTS */
    uint64_t bytes_out;            /* its part of the mover's window */
    page_asked *asked;             /* [MOVER_ASKED_MAX], a ring */
    uint64_t asked_first, asked_end;
    uint64_t begun_ns, bytes; /* for the log */
} page_import;

struct page_mover {
    page_mover_config config;
    pthread_t thread;
    bool has_thread;
    _Atomic bool is_closing, has_news;
    _Atomic uint64_t bytes_in, bytes_out;
    _Atomic uint32_t pulls, links;

    pthread_mutex_t lock; /* of everything below, and of exports and imports */
    pthread_cond_t idle;
    bool is_working; /* the mover's thread reads or writes pages, outside the lock */
    attention *engine;
    wire_pages_hello own;
    uint64_t unit_bytes_max;
    uint32_t grants; /* at most MOVER_GRANTS */
    copy_window window; /* of all pulls together */
    uint64_t next_tag;
    page_export *exports;
    page_import *imports; /* the eldest first */
};

void mover_tell(page_mover *m); /* the engine's thread has work */
/* The mover's thread lets go of the lock while it works on pages; the engine's waits before it takes them away. */
void mover_begin_work(page_mover *m);
void mover_end_work(page_mover *m);
void mover_await_work(page_mover *m);
void mover_wake(page_mover *m); /* the mover's thread has work */

/* page_export.c. drive: the mover's thread, under the lock; true: it is over and may be freed. */
bool page_export_drive(page_export *x);
void page_export_tend(page_export *x); /* the engine's thread, under the lock */
void page_export_free(page_export *x);

/* page_import.c, likewise. */
bool page_import_drive(page_import *x);
void page_import_ask_all(page_mover *m); /* the eldest has the window first, so one is whole while others begin */
void page_import_tend(page_import *x);
void page_import_free(page_import *x);
/* On the engine's thread: the sequence is closed here, and the import goes. */
void page_import_end(page_import *x);
hd_status page_import_pull(page_import *x, uint64_t wanted, bool has_wanted, uint64_t *tokens, hd_error *error);

#endif
