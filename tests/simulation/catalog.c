/* catalog.c - prompts from dice, answers from a worker with its own engine. */
#include "tests/simulation/catalog.h"

#include <assert.h>
#include <stdlib.h>

#include "tests/simulation/tiny_model.h"

#define FAMILIES 5u

typedef struct asked {
    worker_request request; /* first */
    catalog_entry *entry;
} asked;

static catalog_entry entries[CATALOG_ENTRIES];
static unsigned unanswered;

const catalog_entry *catalog_get(unsigned index) {
    return &entries[index];
}

worker_request catalog_request(const catalog_entry *entry) {
    return (worker_request){.prompt_ids = entry->prompt,
                            .prompt_count = entry->prompt_count,
                            .max_tokens = entry->max_tokens,
                            .choices = entry->choices,
                            .sampling = entry->sampling};
}

static void make_entry(catalog_entry *e, unsigned index) {
    dice d = {index * 77 + 1};
    uint64_t lengths[][2] = {{3, 120},   {3, 120},   {129, 500},  {129, 500},
                             {129, 500}, {129, 500}, {600, 1400}, {2049, 2600}};
    /* The last eighth of the entries are long. */
    unsigned kind = index >= CATALOG_ENTRIES - CATALOG_ENTRIES / 8 ? 6 + index % 2 : index % 6;
    e->prompt_count = dice_between(&d, lengths[kind][0], lengths[kind][1]);
    e->prompt = calloc(e->prompt_count, sizeof(*e->prompt));
    assert(e->prompt != NULL);
    uint64_t family = index % FAMILIES, shared = dice_below(&d, e->prompt_count);
    for (uint64_t i = 0; i < e->prompt_count; i++) {
        uint64_t origin = i < shared ? family : 1000 + index;
        e->prompt[i] = (uint32_t)(dice_mix(origin << 32 | i) % TINY_VOCABULARY);
    }
    e->max_tokens = dice_between(&d, 1, CATALOG_TOKENS_MAX);
    e->choices = index % 7 == 3 ? 2 + index % 2 : 1;
    e->sampling = (worker_sampling){.top_p = 1,
                                    .repetition_penalty = 1,
                                    .seed = dice_next(&d),
                                    .logprobs = -1,
                                    .prompt_logprobs = -1,
                                    .ignore_eos = index % 4 != 0};
    if (index % 2 == 0 || e->choices > 1) e->sampling.temperature = 0.9f;
    if (index % 5 == 0) e->sampling.presence_penalty = 0.4f;
    if (index % 6 == 0) e->sampling.top_p = 0.8f;
}

static void on_event(worker_request *r, const worker_event *event) {
    catalog_answer *a = &((asked *)r)->entry->answers[event->choice];
    if (event->kind == WORKER_TOKEN) a->tokens[a->count++] = event->token_id;
    if (event->kind == WORKER_FAILED) machine_fail("a request of the catalogue failed alone: %s", event->message);
    if (event->kind != WORKER_FINISHED) return;
    a->has_ended = true;
    a->finish = event->finish;
    a->stop_id = event->stop_id;
    unanswered -= event->last;
    machine_wake(&unanswered, true);
}

static bool has_ended;

static void *answer_all(void *context) {
    worker_rpc *rpc = single_open(context);
    static asked requests[CATALOG_ENTRIES];
    hd_error error = {.text = ""};
    /* One by one: alone in every sense. */
    for (unsigned i = 0; i < CATALOG_ENTRIES; i++) {
        requests[i] = (asked){.request = catalog_request(&entries[i]), .entry = &entries[i]};
        requests[i].request.id = i + 1;
        requests[i].request.no_cache = true;
        requests[i].request.on_event = on_event;
        unanswered = 1;
        if (rpc->ops->submit(rpc, &requests[i].request, &error) != HD_OK) machine_fail("catalogue: %s", error.text);
        while (unanswered > 0) machine_wait(&unanswered, MACHINE_NEVER);
    }
    single_close(rpc);
    has_ended = true;
    return NULL;
}

static bool is_done(void *context) {
    return has_ended;
}

bool catalog_make(const cluster_shape *shape) {
    for (unsigned i = 0; i < CATALOG_ENTRIES; i++) make_entry(&entries[i], i);
    machine_init(0, false);
    machine_spawn(machine_process("single"), answer_all, (void *)shape);
    return machine_run(is_done, NULL, MACHINE_NEVER);
}
