/* page_mover.c - the mover's thread, its lists, and what both threads say to each other. */
#include "attention-node/page_mover.h"

#include <assert.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attention-node/mover_state.h"
#include "base/clock.h"
#include "base/memory.h"

#define POLL_NS 100000000ull
#define BUSY_POLL_NS 2000000ull
#define MOVER_NICE 5 /* steps first, where both want the same processor */
#define WINDOW_MIN ((uint64_t)384 << 10)
#define WINDOW_MAX ((uint64_t)16 << 20)
#define WINDOW_DELAY_NS 2000000ull

/* ---- Between the threads ---- */

void mover_tell(page_mover *m) {
    atomic_store(&m->has_news, true);
    if (m->config.wake != NULL) m->config.wake(m->config.context);
}

void mover_wake(page_mover *m) {
    m->config.transport->ops->wake(m->config.transport);
}

void mover_begin_work(page_mover *m) {
    m->is_working = true;
    pthread_mutex_unlock(&m->lock);
}

void mover_end_work(page_mover *m) {
    pthread_mutex_lock(&m->lock);
    m->is_working = false;
    pthread_cond_broadcast(&m->idle);
}

void mover_await_work(page_mover *m) {
    while (m->is_working) pthread_cond_wait(&m->idle, &m->lock);
}

/* ---- The mover's thread ---- */

static bool has_pulls(const page_mover *m) {
    return atomic_load_explicit(&m->pulls, memory_order_relaxed) > 0;
}

static void drive(page_mover *m) {
    pthread_mutex_lock(&m->lock);
    for (page_import **at = &m->imports; *at != NULL;) {
        page_import *x = *at;
        if (!page_import_drive(x)) {
            at = &x->next;
            continue;
        }
        *at = x->next;
        page_import_free(x);
    }
    if (m->engine != NULL) page_import_ask_all(m);
    for (page_export **at = &m->exports; *at != NULL;) {
        page_export *x = *at;
        if (!page_export_drive(x)) {
            at = &x->next;
            continue;
        }
        *at = x->next;
        page_export_free(x);
    }
    pthread_mutex_unlock(&m->lock);
}

bool page_mover_poll(page_mover *m, uint64_t timeout_ns) {
    uint64_t most = has_pulls(m) ? BUSY_POLL_NS : POLL_NS;
    bool has_come = m->config.transport->ops->poll(m->config.transport, timeout_ns < most ? timeout_ns : most);
    drive(m);
    return has_come;
}

static void *mover_main(void *context) {
    page_mover *m = context;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), MOVER_NICE);
    while (!atomic_load(&m->is_closing)) page_mover_poll(m, POLL_NS);
    return NULL;
}

hd_status page_mover_start(page_mover *m) {
    sigset_t all, before; /* signals are for the threads that expect them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    m->has_thread = pthread_create(&m->thread, NULL, mover_main, m) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!m->has_thread) return HD_NO_MEMORY;
    pthread_setname_np(m->thread, "pages");
    return HD_OK;
}

/* ---- The engine's thread ---- */

/* Where there is a disk, memory is for few blocks at a time, and steps need it too. */
static uint32_t grants_of(const attention *engine, const wire_pages_hello *own) {
    uint64_t grants = MOVER_GRANTED_BYTES / own->block_bytes;
    if (engine_has_cold(engine) || grants < MOVER_GRANTS_LEAST) return MOVER_GRANTS_LEAST;
    return grants < MOVER_GRANTS ? (uint32_t)grants : MOVER_GRANTS;
}

void page_mover_serve(page_mover *m, attention *engine, const wire_pages_hello *own) {
    pthread_mutex_lock(&m->lock);
    m->own = *own;
    m->engine = engine;
    m->unit_bytes_max = 1;
    for (uint32_t i = 0; i < own->unit_count; i++) {
        if (engine_unit_bytes(engine, i) > m->unit_bytes_max) m->unit_bytes_max = engine_unit_bytes(engine, i);
    }
    m->grants = grants_of(engine, own);
    pthread_mutex_unlock(&m->lock);
}

static bool is_holding(const page_mover *m) {
    for (const page_export *x = m->exports; x != NULL; x = x->next) {
        if (x->count > 0) return true;
    }
    return false;
}

/* Pages that were lent are back when the transport says so; who drives it, the thread or this one, tells. */
static void release_all(page_mover *m) {
    for (;;) {
        pthread_mutex_lock(&m->lock);
        mover_await_work(m);
        for (page_export *x = m->exports; x != NULL; x = x->next) {
            x->is_ended = true; /* the mover's thread disconnects */
            page_export_tend(x);
        }
        bool is_done = !is_holding(m);
        pthread_mutex_unlock(&m->lock);
        if (is_done) return;
        mover_wake(m);
        if (!m->has_thread) page_mover_poll(m, BUSY_POLL_NS);
        else usleep(1000);
    }
}

void page_mover_unserve(page_mover *m) {
    if (m->engine == NULL) return;
    pthread_mutex_lock(&m->lock);
    mover_await_work(m);
    for (page_import *x = m->imports; x != NULL; x = x->next) page_import_end(x);
    pthread_mutex_unlock(&m->lock);
    release_all(m);
    pthread_mutex_lock(&m->lock);
    m->engine = NULL;
    pthread_mutex_unlock(&m->lock);
}

void page_mover_tend(page_mover *m) {
    if (!atomic_exchange(&m->has_news, false)) return;
    pthread_mutex_lock(&m->lock);
    for (page_export *x = m->exports; x != NULL; x = x->next) page_export_tend(x);
    for (page_import *x = m->imports; x != NULL; x = x->next) page_import_tend(x);
    pthread_mutex_unlock(&m->lock);
    mover_wake(m);
}

static page_import *find_import(const page_mover *m, uint64_t name) {
    for (page_import *x = m->imports; x != NULL; x = x->next) {
        if (x->params.sequence == name && x->state != IMPORT_OVER) return x;
    }
    return NULL;
}

static page_import *new_import(page_mover *m, const attention_pull *pull, const void *owner) {
    page_import *x = hd_alloc_zeroed(sizeof(*x), HD_CACHE_LINE);
    if (x != NULL) x->asked = hd_alloc_zeroed(MOVER_ASKED_MAX * sizeof(*x->asked), HD_CACHE_LINE);
    if (x == NULL || x->asked == NULL) {
        hd_free(x);
        return NULL;
    }
    x->mover = m;
    x->owner = owner;
    x->begun_ns = hd_now_ns();
    x->params = pull->params;
    memcpy(x->address, pull->address, strlen(pull->address) + 1);
    if (pull->params.selection != NULL) {
        memcpy(x->selection, pull->params.selection, strlen(pull->params.selection) + 1);
        x->params.selection = x->selection;
    }
    page_import **last = &m->imports;
    while (*last != NULL) last = &(*last)->next;
    *last = x;
    atomic_fetch_add(&m->pulls, 1);
    return x;
}

static hd_status check_pull(const page_mover *m, const attention_pull *pull, hd_error *error) {
    const char *text = pull->params.selection;
    if (m->engine == NULL) return hd_error_set(error, HD_INVALID, "nothing is kept here yet");
    if (strlen(pull->address) >= RPC_ADDRESS_BYTES || (text != NULL && strlen(text) >= SELECTION_TEXT_BYTES) ||
        pull->params.token_count != 0)
        return hd_error_set(error, HD_INVALID, "an address or a selection that is too long, or tokens");
    return HD_OK;
}

hd_status page_mover_pull(page_mover *m, const attention_pull *pull, const void *owner, uint64_t *tokens,
                          hd_error *error) {
    pthread_mutex_lock(&m->lock);
    hd_status status = check_pull(m, pull, error);
    page_import *x = status == HD_OK ? find_import(m, pull->params.sequence) : NULL;
    if (x != NULL && x->params.epoch != pull->params.epoch) {
        status = x->params.epoch > pull->params.epoch ? HD_STALE : HD_OK;
        if (status == HD_OK) page_import_end(x);
        x = NULL;
    }
    if (status == HD_OK && x == NULL && (x = new_import(m, pull, owner)) == NULL) status = HD_NO_MEMORY;
    if (status == HD_OK) {
        uint64_t first = x->params.first_position, end = x->params.end_position, wanted = pull->length;
        if (end != 0 && wanted > end) wanted = end;
        status = page_import_pull(x, wanted > first ? wanted - first : 0, pull->length != 0, tokens, error);
    }
    pthread_mutex_unlock(&m->lock);
    mover_wake(m);
    return status;
}

void page_mover_drop(page_mover *m, uint64_t sequence) {
    if (!has_pulls(m)) return;
    pthread_mutex_lock(&m->lock);
    page_import *x = find_import(m, sequence);
    if (x != NULL) page_import_end(x);
    pthread_mutex_unlock(&m->lock);
    mover_wake(m);
}

void page_mover_drop_owner(page_mover *m, const void *owner) {
    if (!has_pulls(m)) return;
    pthread_mutex_lock(&m->lock);
    for (page_import *x = m->imports; x != NULL; x = x->next) {
        if (x->owner == owner) page_import_end(x);
    }
    pthread_mutex_unlock(&m->lock);
    mover_wake(m);
}

void page_mover_stats_read(page_mover *m, page_mover_stats *stats) {
    *stats = (page_mover_stats){.bytes_in = atomic_load(&m->bytes_in),
                                .bytes_out = atomic_load(&m->bytes_out),
                                .pulls = atomic_load(&m->pulls),
                                .links = atomic_load(&m->links)};
}

/* ---- Start and end ---- */

void page_mover_close(page_mover *m) {
    if (m == NULL) return;
    page_mover_unserve(m);
    if (m->has_thread) {
        atomic_store(&m->is_closing, true);
        mover_wake(m);
        pthread_join(m->thread, NULL);
        m->has_thread = false;
    }
    pthread_mutex_lock(&m->lock);
    for (page_export *x = m->exports; x != NULL; x = x->next) x->is_ended = true;
    pthread_mutex_unlock(&m->lock);
    while (m->imports != NULL || m->exports != NULL) page_mover_poll(m, BUSY_POLL_NS);
    pthread_cond_destroy(&m->idle);
    pthread_mutex_destroy(&m->lock);
    hd_free(m);
}

hd_status page_mover_open(const page_mover_config *config, page_mover **out) {
    page_mover *m = hd_alloc_zeroed(sizeof(*m), HD_CACHE_LINE);
    if (m == NULL) return HD_NO_MEMORY;
    m->config = *config;
    copy_window_init(&m->window, config->window_min != 0 ? config->window_min : WINDOW_MIN,
                     config->window_max != 0 ? config->window_max : WINDOW_MAX,
                     config->window_delay_ns != 0 ? config->window_delay_ns : WINDOW_DELAY_NS);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->idle, NULL);
    *out = m;
    return HD_OK;
}
