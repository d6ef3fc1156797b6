/* emulator.c - fibers, and the words of simt.h that several of them do together.
 *
 * A fiber that reaches such a word notes what it asks for and gives way to the next fiber that can run; the last one
 * to come does the work for all of them. */
#include "kernels/cuda/emulator.h"

#include <assert.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "base/memory.h"
#include "kernels/cuda/simt.h"

#define STACK_BYTES ((size_t)128 << 10)
/* Stacks end at different places of a page: those of a block would otherwise share one set of every cache. */
#define STACK_SHIFTS 61u
#define STACK_SHIFT_BYTES ((size_t)1088)
#define COPIES_MAX 4096u /* that one thread has on their way */

typedef enum {
    WORD_NONE,
    WORD_SYNC,
    WORD_SYNC_WARP,
    WORD_SHUFFLE_XOR,
    WORD_SHUFFLE,
    WORD_SHUFFLE_XOR_U32,
    WORD_MATRICES,
    WORD_MATRICES_TRANSPOSED,
    WORD_MMA,
    WORD_ENDED,
} word;

static const char *const word_names[] = {"running",       "sync",
                                         "sync_warp",     "shuffle_xor",
                                         "shuffle",       "shuffle_xor_u32",
                                         "load_matrices", "load_matrices_transposed",
                                         "mma",           "ended"};

typedef struct copy {
    void *to;
    const void *from;
    bool is_valid;
    uint32_t group;
} copy;

typedef struct fiber {
    ucontext_t context;
    jmp_buf place;
    bool is_started;
    const void *inputs[2];
    void *output;
    uint32_t number; /* of a shuffle: mask or lane */
    uint32_t value;  /* of a shuffle: bits in, bits out */
    uint32_t group;  /* of copies, the one that is open */
    copy *copies;    /* [COPIES_MAX] */
    uint32_t copy_count;
} fiber;

uint32_t emulated_thread, emulated_thread_count, emulated_block, emulated_block_count;
unsigned char *emulated_shared;

static struct {
    emulator_order order;
    emulator_body *body;
    const void *arguments;
    size_t shared_bytes;
    /* Taken once and kept: [EMULATOR_THREADS_MAX]. */
    fiber *fibers;
    unsigned char *stacks;
    unsigned char
        waits_for[EMULATOR_THREADS_MAX]; /* a word; apart from the fibers, since all of them are looked at often */
    word meeting[EMULATOR_THREADS_MAX / SIMT_WARP]; /* of a warp, and how many of its lanes have come */
    uint32_t arrived[EMULATOR_THREADS_MAX / SIMT_WARP];
    uint32_t arrived_at_sync, ended;
    ucontext_t home;
} grid;

void emulator_set_order(emulator_order order) {
    grid.order = order;
}

static void fail(const char *why) {
    fprintf(stderr, "emulator: block %u thread %u: %s\n", emulated_block, emulated_thread, why);
    for (uint32_t i = 0; i < emulated_thread_count; i++) {
        if (i > 0 && grid.waits_for[i] == grid.waits_for[i - 1]) continue;
        fprintf(stderr, "emulator: from thread %u on: %s\n", i, word_names[grid.waits_for[i]]);
    }
    abort();
}

static fiber *self(void) {
    return &grid.fibers[emulated_thread];
}

/* ---- Fibers ---- */

static void run_fiber(void);

/* Goes on with another fiber; `from` may be NULL. A saved place is cheaper than a context, but the address sanitizer
 * has to know about stacks. */
static void go_to(fiber *from, uint32_t thread) {
    assert(grid.fibers != NULL);
    fiber *to = &grid.fibers[thread];
    emulated_thread = thread;
#ifdef __SANITIZE_ADDRESS__
    to->is_started = true;
    swapcontext(from != NULL ? &from->context : &grid.home, &to->context);
#else
    if (from != NULL && _setjmp(from->place) != 0) return;
    if (to->is_started) _longjmp(to->place, 1);
    to->is_started = true;
    if (from == NULL) swapcontext(&grid.home, &to->context);
    else setcontext(&to->context);
#endif
}

/* A fiber of [begin, begin + count) behind this one in the order that can run, or none. */
static bool find_runnable(uint32_t begin, uint32_t count, uint32_t *found) {
    uint32_t from = emulated_thread - begin;
    for (uint32_t step = 1; step < count; step++) {
        uint32_t i = grid.order.is_descending ? from + count - step : from + step;
        *found = begin + (i < count ? i : i - count);
        if (grid.waits_for[*found] == WORD_NONE) return true;
    }
    return false;
}

static uint32_t warp_begin(void) {
    return emulated_thread / SIMT_WARP * SIMT_WARP;
}

/* The next fiber: of this warp where one can run, else of any, or the number of threads. */
static uint32_t next_runnable(void) {
    uint32_t found;
    if (find_runnable(warp_begin(), SIMT_WARP, &found)) return found;
    return find_runnable(0, emulated_thread_count, &found) ? found : emulated_thread_count;
}

static void give_way(void) {
    fiber *from = self();
    uint32_t thread = emulated_thread, next = next_runnable();
    if (next == emulated_thread_count)
        fail("nobody can go on: threads wait for different words, or for one that ended");
    go_to(from, next);
    emulated_thread = thread;
}

static void run_fiber(void) {
    grid.body(grid.arguments);
    grid.waits_for[emulated_thread] = WORD_ENDED;
    if (++grid.ended == emulated_thread_count) setcontext(&grid.home);
    uint32_t next = next_runnable();
    if (next == emulated_thread_count) fail("the others wait for a thread that has ended");
    go_to(self(), next);
}

/* Apart from the loop over fibers: getcontext may return twice, and what it finds in registers then is old. */
static void prepare_fiber(uint32_t thread) {
    fiber *f = &grid.fibers[thread];
    f->is_started = false;
    f->group = f->copy_count = 0;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = grid.stacks + thread * STACK_BYTES;
    f->context.uc_stack.ss_size = STACK_BYTES - thread % STACK_SHIFTS * STACK_SHIFT_BYTES;
    makecontext(&f->context, run_fiber, 0);
}

static void run_block(uint32_t threads) {
    memset(emulated_shared, 0xff, grid.shared_bytes);
    memset(grid.waits_for, WORD_NONE, threads);
    memset(grid.arrived, 0, sizeof(grid.arrived));
    grid.arrived_at_sync = grid.ended = 0;
    for (uint32_t i = 0; i < threads; i++) prepare_fiber(i);
    go_to(NULL, grid.order.is_descending ? threads - 1 : 0);
}

static void take_fibers(void) {
    if (grid.fibers != NULL) return;
    grid.fibers = calloc(EMULATOR_THREADS_MAX, sizeof(*grid.fibers));
    grid.stacks = hd_region_map(EMULATOR_THREADS_MAX * STACK_BYTES);
    copy *copies = hd_region_map(EMULATOR_THREADS_MAX * COPIES_MAX * sizeof(*copies));
    assert(grid.fibers != NULL && grid.stacks != NULL && copies != NULL);
    for (uint32_t i = 0; i < EMULATOR_THREADS_MAX; i++) grid.fibers[i].copies = copies + (size_t)i * COPIES_MAX;
}

void emulator_run(emulator_body *body, const void *arguments, uint32_t blocks, uint32_t threads, size_t shared_bytes) {
    assert(threads > 0 && threads <= EMULATOR_THREADS_MAX && threads % SIMT_WARP == 0);
    take_fibers();
    grid.body = body;
    grid.arguments = arguments;
    grid.shared_bytes = shared_bytes;
    emulated_shared = hd_alloc(shared_bytes > 0 ? shared_bytes : 1, 128);
    assert(emulated_shared != NULL);
    emulated_thread_count = threads;
    emulated_block_count = blocks;
    for (uint32_t i = 0; i < blocks; i++) {
        emulated_block = grid.order.is_descending ? blocks - 1 - i : i;
        run_block(threads);
    }
    hd_free(emulated_shared);
}

/* ---- Meeting ---- */

/* Waits for the whole warp to ask for the same word; the last lane to come does it for all. */
static void meet(word what, void (*act)(fiber *warp)) {
    uint32_t begin = warp_begin(), warp = begin / SIMT_WARP;
    grid.waits_for[emulated_thread] = (unsigned char)what;
    if (grid.arrived[warp] == 0) grid.meeting[warp] = what;
    else if (grid.meeting[warp] != what) fail("another lane of the warp waits for another word");
    if (++grid.arrived[warp] < SIMT_WARP) {
        give_way();
        return;
    }
    grid.arrived[warp] = 0;
    if (act != NULL) act(&grid.fibers[begin]);
    memset(&grid.waits_for[begin], WORD_NONE, SIMT_WARP);
}

void simt_sync(void) {
    grid.waits_for[emulated_thread] = WORD_SYNC;
    if (++grid.arrived_at_sync < emulated_thread_count) {
        give_way();
        return;
    }
    grid.arrived_at_sync = 0;
    memset(grid.waits_for, WORD_NONE, emulated_thread_count);
}

void simt_sync_warp(void) {
    meet(WORD_SYNC_WARP, NULL);
}

static void shuffle_xor(fiber *warp) {
    uint32_t values[SIMT_WARP];
    for (uint32_t i = 0; i < SIMT_WARP; i++) values[i] = warp[i].value;
    for (uint32_t i = 0; i < SIMT_WARP; i++) warp[i].value = values[(i ^ warp[i].number) % SIMT_WARP];
}

static void shuffle(fiber *warp) {
    uint32_t values[SIMT_WARP];
    for (uint32_t i = 0; i < SIMT_WARP; i++) values[i] = warp[i].value;
    for (uint32_t i = 0; i < SIMT_WARP; i++) warp[i].value = values[warp[i].number % SIMT_WARP];
}

static uint32_t exchange(word what, void (*act)(fiber *warp), uint32_t value, uint32_t number) {
    fiber *f = self();
    f->value = value;
    f->number = number;
    meet(what, act);
    return f->value;
}

float simt_shuffle_xor(float value, uint32_t mask) {
    return simt_bits_to_float(exchange(WORD_SHUFFLE_XOR, shuffle_xor, simt_float_to_bits(value), mask));
}

float simt_shuffle(float value, uint32_t lane) {
    return simt_bits_to_float(exchange(WORD_SHUFFLE, shuffle, simt_float_to_bits(value), lane));
}

uint32_t simt_shuffle_xor_u32(uint32_t value, uint32_t mask) {
    return exchange(WORD_SHUFFLE_XOR_U32, shuffle_xor, value, mask);
}

/* ---- Copies ---- */

static void check_shared(const void *address, size_t bytes, size_t alignment) {
    const unsigned char *first = address;
    if (first < emulated_shared || first + bytes > emulated_shared + grid.shared_bytes)
        fail("outside of shared memory");
    if ((size_t)(first - emulated_shared) % alignment != 0) fail("not aligned in shared memory");
}

static void copy_now(const copy *c) {
    if (c->is_valid) memcpy(c->to, c->from, 16);
    else memset(c->to, 0, 16);
}

void simt_copy16(void *shared, const void *global, bool is_valid) {
    check_shared(shared, 16, 16);
    if (is_valid && (uintptr_t)global % 16 != 0) fail("a copy from an address that is not aligned to 16 bytes");
    fiber *f = self();
    copy c = {.to = shared, .from = global, .is_valid = is_valid, .group = f->group};
    if (grid.order.is_eager) {
        copy_now(&c);
        return;
    }
    if (f->copy_count == COPIES_MAX) fail("too many copies on their way");
    f->copies[f->copy_count++] = c;
}

void simt_copy_commit(void) {
    self()->group++;
}

void simt_copy_wait(uint32_t pending) {
    fiber *f = self();
    uint32_t kept = 0;
    for (uint32_t i = 0; i < f->copy_count; i++) {
        if (f->copies[i].group + pending < f->group) copy_now(&f->copies[i]);
        else f->copies[kept++] = f->copies[i];
    }
    f->copy_count = kept;
}

/* ---- Matrices ---- */

/* PTX, "Warp-level matrix instructions": ldmatrix gives lane l elements 2 * (l % 4) and the next of row l / 4. */
static void load_matrices(fiber *warp) {
    for (uint32_t lane = 0; lane < SIMT_WARP; lane++) {
        for (uint32_t m = 0; m < 4; m++) {
            const uint16_t *row = warp[m * 8 + lane / 4].inputs[0];
            ((uint32_t *)warp[lane].output)[m] = (uint32_t)row[lane % 4 * 2] | (uint32_t)row[lane % 4 * 2 + 1] << 16;
        }
    }
}

static void load_matrices_transposed(fiber *warp) {
    for (uint32_t lane = 0; lane < SIMT_WARP; lane++) {
        for (uint32_t m = 0; m < 4; m++) {
            const uint16_t *row = warp[m * 8 + lane % 4 * 2].inputs[0],
                           *next = warp[m * 8 + lane % 4 * 2 + 1].inputs[0];
            ((uint32_t *)warp[lane].output)[m] = (uint32_t)row[lane / 4] | (uint32_t)next[lane / 4] << 16;
        }
    }
}

static void ask_for_matrices(word what, uint32_t r[4], const void *row, void (*act)(fiber *warp)) {
    check_shared(row, 16, 16);
    fiber *f = self();
    f->inputs[0] = row;
    f->output = r;
    meet(what, act);
}

void simt_load_matrices(uint32_t r[4], const void *row) {
    ask_for_matrices(WORD_MATRICES, r, row, load_matrices);
}

void simt_load_matrices_transposed(uint32_t r[4], const void *row) {
    ask_for_matrices(WORD_MATRICES_TRANSPOSED, r, row, load_matrices_transposed);
}

static float half_of(uint32_t pair, uint32_t which) {
    return simt_from_bf16((uint16_t)(pair >> (16 * which)));
}

/* Fragments of m16n8k16 for 16-bit types: group g = lane / 4, thread t = lane % 4.
 * A: registers 0..3 are rows g, g + 8, g, g + 8 and columns 2t.., 2t.., 2t + 8.., 2t + 8..; B: rows 2t.., 2t + 8.. of
 * column g; C and D: row g columns 2t, 2t + 1, then row g + 8. */
static void multiply(fiber *warp) {
    float a[16][16], b[16][8];
    for (uint32_t lane = 0; lane < SIMT_WARP; lane++) {
        const uint32_t *as = warp[lane].inputs[0], *bs = warp[lane].inputs[1];
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t r = 0; r < 4; r++) {
            for (uint32_t half = 0; half < 2; half++) a[g + r % 2 * 8][t * 2 + r / 2 * 8 + half] = half_of(as[r], half);
        }
        for (uint32_t r = 0; r < 2; r++) {
            for (uint32_t half = 0; half < 2; half++) b[t * 2 + r * 8 + half][g] = half_of(bs[r], half);
        }
    }
    float sums[16][8];
    for (uint32_t row = 0; row < 16; row++) {
        for (uint32_t column = 0; column < 8; column++) {
            uint32_t lane = row % 8 * 4 + column / 2;
            sums[row][column] = ((const float *)warp[lane].output)[row / 8 * 2 + column % 2];
        }
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
        }
    }
    for (uint32_t lane = 0; lane < SIMT_WARP; lane++) {
        for (uint32_t i = 0; i < 4; i++)
            ((float *)warp[lane].output)[i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

void simt_mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    fiber *f = self();
    f->inputs[0] = a;
    f->inputs[1] = b;
    f->output = d;
    meet(WORD_MMA, multiply);
}
