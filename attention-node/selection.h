/* selection.h - which of a sequence's tokens a query attends to.
 *
 * A selection is a value: a name and options, fixed when its sequence opens. Asked about a layer, a KV head and a
 * position, it answers with the tokens that are attended to exactly because of where they are (the first ones and the
 * newest ones), and whether the index looks for more between them (index_set.h). What is attended to exactly and what
 * the index finds are merged by lse.
 *   1. The answer is a function of the selection, layer, head and position alone, never of load, batch, chunk or
 *      thread (design, Exactness). A prompt's own rows see everything, whatever the selection: then its keys and
 *      values are the same for every request that begins with it, and may be shared.
 *   2. What a layer's own window hides is hidden whatever the answer, and layers with a window attend to all of it.
 *   3. A token counts as indexed only for queries at least SELECTION_SETTLE_TOKENS after the end of its granule.
 *      Before that it belongs to the newest ones.
 * Implementations: full, window (sinks and recent tokens), retrieval (the same and what an index finds). `auto` is
 * full or retrieval by the length of the request; selection_resolve decides once, before a sequence is opened.
 * Adding one: a table, and a line in the list in selection.c.
 * Threads: values and pure functions. */
#ifndef ATTENTION_NODE_SELECTION_H
#define ATTENTION_NODE_SELECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define SELECTION_TEXT_BYTES 256u     /* of NAME[,key=value...] */
#define SELECTION_SETTLE_TOKENS 1024u /* from the end of an indexed granule to the first query that relies on it */
#define SELECTION_TOKENS_MAX 4096u    /* that an index may find for a query */
#define SELECTION_INDEX_FIRST 128u    /* the tokens before are sinks of every retrieval, and in no index */
#define SELECTION_AUTO "auto"

typedef struct selection_ops selection_ops;

typedef struct selection { /* a value, part of its sequence */
    const selection_ops *ops;
    uint32_t sinks;       /* leading tokens that are always attended to */
    uint32_t recent;      /* newest tokens that are; retrieval has what is not indexed yet */
    uint32_t full_layers; /* leading layers that attend to everything */
    uint32_t tokens;      /* retrieval: found for a query and KV head, at most SELECTION_TOKENS_MAX */
    bool has_estimate;    /* retrieval: what was not found counts by the index's estimate */
    const char *index;    /* retrieval: the index's name, a constant */
} selection;

typedef struct selection_question {
    uint32_t layer, head;
    uint64_t position; /* of the query, which has tokens 0 .. position */
    uint32_t granule;  /* tokens that the index takes in at once */
} selection_question;

typedef struct selection_answer {
    bool is_everything;    /* the rest is unset */
    uint64_t sinks_end;    /* [0, sinks_end) and [recent_first, position] are attended to exactly; */
    uint64_t recent_first; /* sinks_end <= recent_first */
    bool is_searched;      /* [sinks_end, recent_first) by index; else it is not attended to */
} selection_answer;

struct selection_ops {
    const char *name;
    /* options: what follows the name and a comma, or NULL. HD_INVALID names the option. */
    hd_status (*configure)(selection *self, const char *options, hd_error *error);
    void (*choose)(const selection *self, const selection_question *question, selection_answer *answer);
};

const selection_ops *selection_ops_full(void);
const selection_ops *selection_ops_window(void);
const selection_ops *selection_ops_retrieval(void);

/* text is NAME[,key=value...], or NULL for full. HD_INVALID lists the known names,
 * and auto among them, which selection_resolve knows. */
hd_status selection_parse(const char *text, selection *out, hd_error *error);

bool selection_is_equal(const selection *a, const selection *b);
static inline bool selection_is_full(const selection *self) {
    return self->ops == selection_ops_full();
}

/* What `auto` means for a request of that many tokens, prompt and answer: full up to full_up_to, else retrieval with
 * the options that follow "auto,". Other texts mean themselves. */
hd_status selection_resolve(const char *text, uint64_t tokens, uint64_t full_up_to, char out[SELECTION_TEXT_BYTES],
                            hd_error *error);

#endif
