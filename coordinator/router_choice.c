/* router_choice.c - the worker that has the least left to do for a request.
 *
 * cost = tokens of the prompt that it has to compute + half of what waits there to be computed + a little for each
 * request that decodes there; a worker without the memory now comes after all that have it. */
#include <xxhash.h>

#include "coordinator/router_state.h"

#define BLOCK_TOKENS 128u
#define DECODE_COST 64u /* tokens of prefill that a decoding neighbour is worth */
#define FULL_COST (1ull << 40)
#define WAITING_COST (1ull << 32) /* requests queue there already */

static uint64_t next_hash(uint64_t hash, const uint32_t *token_ids) {
    return XXH3_64bits_withSeed(token_ids, ROUTER_HINT_TOKENS * sizeof(*token_ids), hash);
}

static uint64_t first_hash(const routed *q) {
    return XXH3_64bits(q->request.salt, sizeof(q->request.salt));
}

/* The longest prefix that some worker has seen, and which. */
static uint64_t longest_prefix(const routed *q, uint64_t *link) {
    uint64_t hash = first_hash(q), found = 0;
    for (uint64_t done = 0; done + ROUTER_HINT_TOKENS <= q->request.prompt_count; done += ROUTER_HINT_TOKENS) {
        hash = next_hash(hash, q->request.prompt_ids + done);
        const prefix_hint *hint = &q->model->hints[hash % ROUTER_HINTS];
        if (hint->hash != hash) break;
        *link = hint->link;
        found = done + ROUTER_HINT_TOKENS;
    }
    return found;
}

void router_remember(router *r, const routed *q, const worker_link *link) {
    uint64_t hash = first_hash(q);
    if (q->request.no_cache) return;
    for (uint64_t done = 0; done + ROUTER_HINT_TOKENS <= q->request.prompt_count; done += ROUTER_HINT_TOKENS) {
        hash = next_hash(hash, q->request.prompt_ids + done);
        q->model->hints[hash % ROUTER_HINTS] = (prefix_hint){hash, link->name};
    }
}

static uint64_t waiting_tokens(const router *r, const worker_link *link, uint64_t *decoding) {
    uint64_t tokens = 0;
    for (const routed *q = r->requests; q != NULL; q = q->next) {
        if (q->link != link) continue;
        if (q->prompt_done < q->request.prompt_count) tokens += q->request.prompt_count - q->prompt_done;
        else (*decoding)++;
    }
    return tokens;
}

static uint64_t cost_of(const router *r, const routed *q, const worker_link *link, uint64_t prefix) {
    uint64_t decoding = 0, computed = q->request.prompt_count - prefix;
    uint64_t cost = computed + waiting_tokens(r, link, &decoding) / 2 + decoding * DECODE_COST;
    uint64_t blocks =
        (q->request.prompt_count - prefix + q->request.choices * q->request.max_tokens) / BLOCK_TOKENS + 1;
    uint64_t taken = link->load.blocks_sequences + link->load.blocks_reserved;
    bool has_room = link->load.blocks_total == 0 || taken + blocks <= link->load.blocks_total;
    if (!has_room) cost += FULL_COST;
    if (link->load.waiting > 0) cost += WAITING_COST;
    return cost;
}

static bool fits(const routed *q, const worker_link *link) {
    worker_info info;
    worker_rpc *rpc = worker_remote_rpc(link->remote);
    rpc->ops->info(rpc, &info);
    return q->request.prompt_count + q->request.max_tokens <= info.context_max;
}

worker_link *router_choose(router *r, const routed *q) {
    uint64_t prefix_link = 0, prefix = longest_prefix(q, &prefix_link), least = UINT64_MAX;
    worker_link *best = NULL;
    for (worker_link *link = r->links; link != NULL; link = link->next) {
        if (link->model != q->model || !router_link_takes(link) || link->is_full || !fits(q, link)) continue;
        uint64_t cost = cost_of(r, q, link, link->name == prefix_link ? prefix : 0);
        if (link->name == q->avoid) cost = UINT64_MAX - 1; /* only where there is no other */
        if (cost < least) {
            least = cost;
            best = link;
        }
    }
    return best;
}
