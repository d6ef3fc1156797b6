/* fuzz_page_frames.c - a sequence goes from one attention node to another, and the input says what becomes of the
 * frames on the way.
 *
 * Both sides are real: engines, and movers of pages that a queue of frames connects. Each frame takes one byte of the
 * input that says what happens to it, and what that needs after it; when the input is used up, frames arrive as they
 * are.
 *   1  a part (one byte), an offset (two), a byte: changed by it     2  a part, a length: cut there
 *   3  a field of the head (one byte), eight bytes: changed by them  4  it comes twice
 *   5  the link is lost instead                                      6  it does not come
 *   7  a frame instead: kind, flags, layer, value, then lengths of parts (two bytes each, number first) and the parts
 * Whatever comes of it: what is there in the end is what was there before. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/engine.h"
#include "attention-node/engine_blocks.h"
#include "attention-node/page_mover.h"
#include "base/log.h"

#define TOKENS 300u
#define HEADS 2u
#define DIM 32u
#define TURNS 200u
#define QUEUE 256u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_kept) {
    if (!is_kept) abort();
}

/* ---- The input ---- */

static const uint8_t *input, *input_end;

static uint64_t take(uint32_t bytes) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes && input < input_end; i++) value |= (uint64_t)*input++ << 8 * i;
    return value;
}

/* ---- The wire: an end calls, the other answers ---- */

typedef struct wire_end {
    transport_link link; /* first */
    struct wire_end *other;
    transport_handlers handlers;
    void *context;
    bool is_gone, is_other_gone; /* disconnected; the other is, and this one has to hear of it */
} wire_end;

typedef struct wire_frame {
    wire_end *to;
    frame f; /* its parts are its own */
} wire_frame;

static struct {
    transport base;
    page_mover *listener;
    wire_end *ends[64];
    uint32_t end_count;
    wire_frame queue[QUEUE];
    uint32_t first, count;
} wire;

static void *copy_of(const void *bytes, size_t count) {
    void *copy = NULL;
    require(posix_memalign(&copy, FRAME_ALIGN, count > 0 ? count : 1) == 0);
    if (count > 0) memcpy(copy, bytes, count);
    return copy;
}

static void free_parts(frame *f) {
    for (uint32_t i = 0; i < f->part_count; i++) free((void *)f->parts[i].bytes);
}

static wire_end *new_end(void) {
    if (wire.end_count == sizeof(wire.ends) / sizeof(wire.ends[0])) return NULL;
    wire_end *end = calloc(1, sizeof(*end));
    require(end != NULL);
    end->link.owner = &wire.base;
    wire.ends[wire.end_count++] = end;
    return end;
}

static hd_status wire_connect(transport *self, const char *address, const char *channel,
                              const transport_handlers *handlers, void *context, transport_link **link,
                              hd_error *error) {
    wire_end *near = new_end(), *far = near != NULL ? new_end() : NULL;
    if (far == NULL) return hd_error_set(error, HD_FULL, "there were enough links");
    near->other = far;
    far->other = near;
    near->handlers = *handlers;
    near->context = context;
    *link = &near->link;
    return page_mover_accept(wire.listener, &far->link, &far->handlers, &far->context);
}

static hd_status wire_send(transport_link *link, const frame *f, transport_send *send) {
    wire_end *end = (wire_end *)link;
    if (wire.count == QUEUE) return HD_FULL;
    wire_frame *entry = &wire.queue[(wire.first + wire.count++) % QUEUE];
    *entry = (wire_frame){.to = end->other, .f = *f};
    for (uint32_t i = 0; i < f->part_count; i++)
        entry->f.parts[i].bytes = copy_of(f->parts[i].bytes, f->parts[i].count);
    if (send->done != NULL) send->done(send);
    return HD_OK;
}

static void wire_disconnect(transport_link *link) {
    wire_end *end = (wire_end *)link;
    end->is_gone = true;
    end->other->is_other_gone = true;
}

/* A part that is changed, or cut, is a copy that ends where it ends. */
static void change_part(frame *f, bool is_cut) {
    uint32_t index = (uint32_t)take(1), at = (uint32_t)take(2);
    uint8_t by = is_cut ? 0 : (uint8_t)take(1);
    if (f->part_count == 0) return;
    frame_part *part = &f->parts[index % f->part_count];
    if (part->count == 0) return;
    if (!is_cut) {
        ((uint8_t *)part->bytes)[at % part->count] ^= by;
        return;
    }
    void *cut = copy_of(part->bytes, at % part->count);
    free((void *)part->bytes);
    *part = (frame_part){cut, at % part->count};
}

static void change_field(frame *f) {
    uint32_t field = (uint32_t)take(1);
    uint64_t by = take(8);
    switch (field % 7) {
    case 0: f->kind ^= (uint16_t)by; break;
    case 1: f->flags ^= (uint16_t)by; break;
    case 2: f->layer ^= (uint32_t)by; break;
    case 3: f->tag ^= by; break;
    case 4: f->sequence ^= by; break;
    case 5: f->epoch ^= by; break;
    default: f->value ^= by; break;
    }
}

static void take_instead(frame *f) {
    free_parts(f);
    f->kind = (uint16_t)take(2);
    f->flags = (uint16_t)take(2);
    f->layer = (uint32_t)take(4);
    f->value = take(8);
    f->part_count = (uint32_t)take(1) % (FRAME_PARTS_MAX + 1);
    size_t lengths[FRAME_PARTS_MAX];
    for (uint32_t i = 0; i < f->part_count; i++) lengths[i] = (size_t)take(2);
    for (uint32_t i = 0; i < f->part_count; i++) {
        size_t left = (size_t)(input_end - input), count = lengths[i] < left ? lengths[i] : left;
        f->parts[i] = (frame_part){copy_of(input, count), count};
        input += count;
    }
}

static void lose(wire_end *end) {
    if (end->is_gone) return;
    end->is_gone = true;
    end->handlers.on_lost(end->context, &end->link, HD_PEER_LOST, "the link is lost");
}

static void deliver(wire_end *to, const frame *f) {
    if (!to->is_gone) to->handlers.on_frame(to->context, &to->link, f);
}

static void arrive(wire_frame *entry) {
    uint32_t what = (uint32_t)take(1) % 8;
    if (what == 1 || what == 2) change_part(&entry->f, what == 2);
    if (what == 3) change_field(&entry->f);
    if (what == 7) take_instead(&entry->f);
    if (what == 5) {
        lose(entry->to->other);
        lose(entry->to);
    } else if (what != 6) {
        deliver(entry->to, &entry->f);
        if (what == 4) deliver(entry->to, &entry->f);
    }
    free_parts(&entry->f);
}

static bool wire_poll(transport *self, uint64_t timeout_ns) {
    for (uint32_t i = 0; i < wire.end_count; i++) {
        if (!wire.ends[i]->is_other_gone || wire.ends[i]->is_gone) continue;
        lose(wire.ends[i]);
        return true;
    }
    if (wire.count == 0) return false;
    wire_frame entry = wire.queue[wire.first];
    wire.first = (wire.first + 1) % QUEUE;
    wire.count--;
    arrive(&entry);
    return true;
}

static void do_nothing(transport *self) {}

static const transport_ops wire_ops = {.name = "fuzz",
                                       .close = do_nothing,
                                       .connect = wire_connect,
                                       .send = wire_send,
                                       .disconnect = wire_disconnect,
                                       .poll = wire_poll,
                                       .wake = do_nothing};

static void clear_wire(void) {
    for (; wire.count > 0; wire.count--, wire.first = (wire.first + 1) % QUEUE) free_parts(&wire.queue[wire.first].f);
    for (uint32_t i = 0; i < wire.end_count; i++) free(wire.ends[i]);
    wire.end_count = 0;
}

/* ---- The nodes ---- */

static const attention_stream streams[] = {{0, HEADS, DIM, HD_F32, 1, 0}, {0, HEADS, DIM, HD_F32, 1, 0}};
static const attention_layer layers[] = {
    {.key_stream = 0, .value_stream = 1, .value_dim = DIM, .query_heads = HEADS, .scale = 0.2f}};
static uint32_t tokens[TOKENS + 1];
static float room[4][(TOKENS + 1) * HEADS * DIM] __attribute__((aligned(64)));

static attention *open_engine(void) {
    static hd_pool *pool;
    if (pool == NULL) require(hd_pool_open(1, &pool) == HD_OK);
    engine_config config = {.layers = {streams, 2, layers, 1},
                            .kv_dtype = HD_F32,
                            .hot_bytes = 4u << 20,
                            .step_rows_max = TOKENS + 1,
                            .sequences_max = 4,
                            .kernels = kernel_ops_portable(),
                            .pool = pool};
    attention *engine = NULL;
    require(engine_open(&config, &engine, NULL) == HD_OK);
    return engine;
}

/* Keys, values and queries are functions of the position. */
static void fill(float *values, uint32_t first, uint32_t count, uint32_t salt) {
    for (uint32_t i = 0; i < count * HEADS * DIM; i++) {
        uint32_t mixed = (first * HEADS * DIM + i + salt) * 2654435761u;
        values[i] = (float)(mixed >> 16) / 32768.0f - 1.0f;
    }
}

/* The rows are appended; the output of the last of them is the answer. */
static void run_step(attention *engine, uint32_t first, uint32_t count, float *output) {
    attention_rows rows = {
        .sequence = 1, .epoch = 1, .first_position = first, .count = count, .token_ids = tokens + first};
    attention_layer_call call = {.output_stride = HEADS * DIM};
    attention_tensor *tensors[4] = {&call.queries, &call.keys, &call.values, &call.output};
    for (uint32_t i = 0; i < 4; i++) {
        *tensors[i] = (attention_tensor){.data = room[i], .dtype = HD_F32};
        fill(room[i], first, count, 7919 * i);
    }
    require(engine->ops->step_begin(engine, &rows, 1, NULL) == HD_OK);
    require(engine->ops->submit(engine, &call) == HD_OK && engine->ops->wait(engine, 0) == HD_OK);
    require(engine->ops->step_end(engine) == HD_OK);
    memcpy(output, room[3] + (count - 1) * HEADS * DIM, HEADS * DIM * sizeof(*output));
}

static attention_sequence_params params_of(void) {
    return (attention_sequence_params){.sequence = 1, .epoch = 1, .tokens_max = 400, .prompt_count = TOKENS};
}

/* The source has two full blocks and a tail; expected: what the row behind them answers. */
static attention *open_source(float *expected) {
    attention *engine = open_engine();
    float ignored[HEADS * DIM];
    uint64_t cached;
    for (uint32_t i = 0; i <= TOKENS; i++) tokens[i] = i % 50;
    attention_sequence_params params = params_of();
    params.token_ids = tokens;
    params.token_count = TOKENS;
    require(engine->ops->sequence_open(engine, &params, &cached, NULL) == HD_OK);
    run_step(engine, 0, TOKENS, ignored);
    run_step(engine, TOKENS, 1, expected);
    require(engine->ops->truncate(engine, 1, 1, TOKENS) == HD_OK);
    return engine;
}

static void do_nothing_else(void *context) {}

static page_mover *open_mover(attention *engine) {
    page_mover_config config = {.transport = &wire.base, .wake = do_nothing_else};
    page_mover *mover = NULL;
    require(page_mover_open(&config, &mover) == HD_OK);
    wire_pages_hello own = {.version_min = PAGES_WIRE_VERSION_MIN,
                            .version_max = PAGES_WIRE_VERSION,
                            .kv_dtype = HD_F32,
                            .head_count = HEADS,
                            .unit_count = engine_unit_count(engine),
                            .block_bytes = engine_units_bytes(engine),
                            .kernels = "portable"};
    page_mover_serve(mover, engine, &own);
    return mover;
}

static hd_status fetch(page_mover *to, page_mover *from) {
    attention_pull pull = {.address = "source", .params = params_of(), .length = TOKENS};
    hd_status status = HD_PENDING;
    for (uint32_t i = 0; i < TURNS && status == HD_PENDING; i++) {
        hd_error error = {.text = ""};
        uint64_t there = 0;
        status = page_mover_pull(to, &pull, NULL, &there, &error);
        require(status != HD_OK || there == TOKENS);
        page_mover_poll(to, 0);
        page_mover_poll(from, 0);
        page_mover_tend(from);
        page_mover_tend(to);
    }
    if (status == HD_PENDING) page_mover_drop(to, 1);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static attention *source, *receiver;
    static float expected[HEADS * DIM];
    if (source == NULL) {
        hd_log_set_level(HD_LOG_ERROR);
        wire.base.ops = &wire_ops;
        source = open_source(expected);
        receiver = open_engine();
    }
    input = data;
    input_end = data + size;
    page_mover *from = open_mover(source), *to = open_mover(receiver);
    wire.listener = from;
    hd_status status = fetch(to, from);
    uint64_t length = 0;
    if (status == HD_OK) {
        float output[HEADS * DIM];
        require(receiver->ops->sequence_length(receiver, 1, &length) == HD_OK && length == TOKENS);
        run_step(receiver, TOKENS, 1, output);
        require(memcmp(output, expected, sizeof(output)) == 0);
        require(receiver->ops->sequence_close(receiver, 1, 1, false, false) == HD_OK);
    } else {
        require(receiver->ops->sequence_length(receiver, 1, &length) == HD_NOT_FOUND);
    }
    require(size > 0 || status == HD_OK);
    page_mover_close(to);
    page_mover_close(from);
    clear_wire();
    receiver->ops->cache_reset(receiver);
    attention_stats stats;
    receiver->ops->stats(receiver, &stats);
    require(stats.sequences == 0 && stats.blocks_sequences == 0 && stats.blocks_reserved == 0);
    return 0;
}
