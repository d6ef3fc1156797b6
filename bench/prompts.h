/* prompts.h - prompts of a wanted length for a server that is only known by its HTTP interface.
 *
 * Where the server has /tokenize, prompts are lists of token ids drawn from the ids of a list of English words, so
 * their length is exact. Where it has not, or for chat, they are that many words, about a token each; the server's own
 * usage figures say how many tokens there were. Two prompts share their first `prefix_tokens` tokens and, beyond
 * chance, nothing else.
 * Threads: stateless after open; one thread. */
#ifndef BENCH_PROMPTS_H
#define BENCH_PROMPTS_H

#include "bench/http_client.h"
#include "bench/random.h"

typedef struct prompts {
    uint32_t *ids; /* the pool that prompts are drawn from; NULL: words */
    size_t id_count;
    uint64_t prefix_seed, prefix_tokens;
} prompts;

/* Asks the server once. wants_text: never ids. */
hd_status prompts_open(http_client *client, const char *model, bool wants_text, uint64_t seed, uint64_t prefix_tokens,
                       prompts *p);
void prompts_close(prompts *p);

/* The prompt as JSON: an array of ids, or a string. malloc'ed and zero terminated; NULL without memory. */
char *prompts_make(const prompts *p, bench_random *random, uint64_t tokens);

#endif
