/* fuzz_attention_service.c - what two workers say to an attention node: calls as frames, one after the other.
 *
 * A call is 16 bytes (kind with the link in its highest bit, layer, epoch, number of parts, sequence, value; the kind
 * 0x7f loses the link), a length of two bytes for each part, the parts. The node is a real one, with little memory; the
 * far end of its links reads whatever it answers. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/attention_frames.h"
#include "attention-node/attention_service.h"
#include "attention-node/layer_table.h"
#include "base/log.h"

#define HOT_BYTES (4u << 20)
#define KIND_LOST 0x7fu

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_kept) {
    if (!is_kept) abort();
}

/* ---- The far end ---- */

typedef struct far_end {
    transport_link link;
    transport_handlers handlers;
    void *context; /* NULL: not linked */
} far_end;

static hd_status read_answer(transport_link *link, const frame *f, transport_send *send) {
    unsigned char head[FRAME_HEAD_BYTES];
    frame_part pieces[FRAME_PIECES_MAX];
    frame_encode(f, head, pieces); /* reads every byte for the checksum */
    require((f->kind & ATTENTION_ANSWER) != 0 && f->flags < HD_STATUS_COUNT);
    require(f->part_count >= 2 && f->parts[0].count == sizeof(wire_stats));
    require((f->flags == HD_OK) == (f->parts[1].count == 0));
    return HD_OK;
}

static void forget(transport_link *link) {
    ((far_end *)link)->context = NULL;
}

static hd_status no_connect(transport *self, const char *address, const char *channel,
                            const transport_handlers *handlers, void *context, transport_link **link, hd_error *error) {
    return HD_UNSUPPORTED;
}

static void do_nothing(transport *self) {}

static bool nothing_comes(transport *self, uint64_t timeout_ns) {
    return false;
}

static const transport_ops far_ops = {.name = "fuzz",
                                      .close = do_nothing,
                                      .connect = no_connect,
                                      .send = read_answer,
                                      .disconnect = forget,
                                      .poll = nothing_comes,
                                      .wake = do_nothing};

/* ---- Calls ---- */

typedef struct call_head {
    uint8_t kind, layer, epoch, part_count;
    uint32_t sequence;
    uint64_t value;
} call_head;
_Static_assert(sizeof(call_head) == 16, "as the corpus has it");

/* The next call; its parts are copies that end where they end. False: the input is used up. */
static bool take_call(const uint8_t **at, const uint8_t *end, uint8_t *kind, frame *f) {
    call_head head;
    if ((size_t)(end - *at) < sizeof(head)) return false;
    memcpy(&head, *at, sizeof(head));
    *at += sizeof(head);
    *kind = head.kind;
    *f = (frame){.kind = head.kind & 0x7f,
                 .layer = head.layer,
                 .tag = 1,
                 .sequence = head.sequence,
                 .epoch = head.epoch,
                 .value = head.value};
    uint32_t part_count = head.part_count % (FRAME_PARTS_MAX + 1);
    if ((size_t)(end - *at) < part_count * sizeof(uint16_t)) return false;
    const uint8_t *lengths = *at;
    *at += part_count * sizeof(uint16_t);
    for (uint32_t i = 0; i < part_count; i++) {
        size_t count = lengths[2 * i] + 256u * lengths[2 * i + 1];
        void *copy = NULL;
        if (count > (size_t)(end - *at)) count = (size_t)(end - *at);
        require(posix_memalign(&copy, FRAME_ALIGN, count > 0 ? count : 1) == 0);
        memcpy(copy, *at, count);
        *at += count;
        f->parts[f->part_count++] = (frame_part){copy, count};
    }
    return true;
}

/* What is promised of a table that was accepted: its sizes are no accidents of 64 bits, and all of its heads are all of
 * it. */
static void check_sizes(const attention_layer_table *table) {
    enum { COUNT_MAX = 64, TOKENS = 1000, BLOCKS = (TOKENS + HD_BLOCK_TOKENS - 1) / HD_BLOCK_TOKENS };
    uint64_t block_bytes = attention_layer_table_block_bytes(table), states = attention_layer_table_state_bytes(table);
    uint64_t bytes = attention_layer_table_bytes(table, TOKENS);
    require(block_bytes > 0 && bytes >= states && bytes - states <= BLOCKS * block_bytes);
    require(attention_layer_table_bytes(table, 0) == states);
    uint32_t heads = attention_layer_table_kv_heads(table);
    if (heads == 0) return;
    attention_stream streams[COUNT_MAX];
    attention_layer layers[COUNT_MAX];
    attention_layer_table cut;
    attention_layer_table_cut(table, 0, heads, streams, layers, &cut);
    require(attention_layer_table_check(&cut, NULL) == HD_OK);
    require(attention_layer_table_block_bytes(&cut) == block_bytes);
}

/* A table that is accepted goes over the wire again as the same bytes. */
static void check_table(const frame *f) {
    enum { COUNT_MAX = 64 };
    attention_stream streams[COUNT_MAX];
    attention_layer layers[COUNT_MAX];
    wire_stream wire_streams[COUNT_MAX];
    wire_layer wire_layers[COUNT_MAX];
    float sinks[4 * COUNT_MAX], again[4 * COUNT_MAX];
    wire_hello hello;
    attention_layer_table table;
    hd_error error = {.text = ""};
    if (!wire_part(f, 0, sizeof(hello), 1)) return;
    memcpy(&hello, f->parts[0].bytes, sizeof(hello));
    if (hello.stream_count > COUNT_MAX || hello.layer_count > COUNT_MAX || hello.sink_count > 4 * COUNT_MAX) return;
    hd_status status = wire_table_decode(&hello, f, streams, layers, sinks, &table, &error);
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (status != HD_OK) return;
    uint32_t sink_count = 0;
    wire_table_encode(&table, wire_streams, wire_layers, again, &sink_count);
    require(sink_count <= hello.sink_count && memcmp(again, sinks, sink_count * sizeof(float)) == 0);
    const wire_stream *given = f->parts[1].bytes;
    for (uint32_t i = 0; i < hello.stream_count; i++) {
        wire_stream same = given[i];
        same.zero = 0;
        require(memcmp(&same, &wire_streams[i], sizeof(same)) == 0);
    }
    check_sizes(&table);
}

static void run_call(attention_service *service, far_end *far, const frame *f) {
    if (far->context == NULL)
        require(attention_service_accept(service, &far->link, &far->handlers, &far->context) == HD_OK);
    if (f->kind == ATTENTION_HELLO) check_table(f);
    if (f->kind == KIND_LOST) far->handlers.on_lost(far->context, &far->link, HD_PEER_LOST, "gone");
    else far->handlers.on_frame(far->context, &far->link, f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static hd_pool *pool;
    if (pool == NULL) {
        require(hd_pool_open(1, &pool) == HD_OK);
        hd_log_set_level(HD_LOG_ERROR);
    }
    attention_service_config config = {
        .hot_bytes = HOT_BYTES, .links_max = 2, .orphan_ms = 1000, .kernels = kernel_ops_portable(), .pool = pool};
    attention_service *service = NULL;
    require(attention_service_open(&config, &service) == HD_OK);
    transport far = {&far_ops};
    far_end ends[2] = {{.link = {&far}}, {.link = {&far}}};
    const uint8_t *at = data, *end = data + size;
    uint8_t kind;
    frame f;
    for (bool goes_on = true; goes_on;) {
        f.part_count = 0;
        goes_on = take_call(&at, end, &kind, &f);
        if (goes_on) run_call(service, &ends[kind >> 7], &f);
        for (uint32_t i = 0; i < f.part_count; i++) free((void *)f.parts[i].bytes);
    }
    attention_service_close(service);
    return 0;
}
