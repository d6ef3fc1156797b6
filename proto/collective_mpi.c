/* collective_mpi.c - Open MPI's library, opened at run time. Its C interface consists of functions and of addresses of
 * objects that stand for communicators and types; both are symbols of the library. */
#include <assert.h>
#include <dlfcn.h>
#include <stdlib.h>

#include "base/log.h"
#include "proto/collective.h"

#define LIBRARY "libmpi.so.40"
#define THREAD_SERIALIZED 2 /* any thread, one at a time */
#define TAG 1

typedef struct mpi_object mpi_object;

typedef struct mpi {
    collective base; /* first */
    mpi_object *world, *byte;
    int (*init)(int *argc, char ***argv, int required, int *provided);
    int (*finalize)(void);
    int (*rank)(mpi_object *communicator, int *rank);
    int (*size)(mpi_object *communicator, int *size);
    int (*send)(const void *bytes, int count, mpi_object *type, int to, int tag, mpi_object *communicator);
    int (*receive)(void *bytes, int count, mpi_object *type, int from, int tag, mpi_object *communicator, void *status);
    int (*probe)(int from, int tag, mpi_object *communicator, int *flag, void *status);
    int (*broadcast)(void *bytes, int count, mpi_object *type, int root, mpi_object *communicator);
} mpi;

static mpi *mpi_of(collective *self) {
    return (mpi *)self;
}

/* Errors end the process, in the library: what it returns is success. */
static void mpi_send(collective *self, uint32_t rank, const void *bytes, size_t count) {
    mpi *m = mpi_of(self);
    assert(count <= COLLECTIVE_BYTES_MAX);
    (void)m->send(bytes, (int)count, m->byte, (int)rank, TAG, m->world);
}

static void mpi_receive(collective *self, uint32_t rank, void *bytes, size_t count) {
    mpi *m = mpi_of(self);
    assert(count <= COLLECTIVE_BYTES_MAX);
    (void)m->receive(bytes, (int)count, m->byte, (int)rank, TAG, m->world, NULL);
}

static bool mpi_has_come(collective *self, uint32_t rank) {
    mpi *m = mpi_of(self);
    int has_come = 0;
    (void)m->probe((int)rank, TAG, m->world, &has_come, NULL);
    return has_come != 0;
}

static void mpi_broadcast(collective *self, void *bytes, size_t count) {
    mpi *m = mpi_of(self);
    assert(count <= COLLECTIVE_BYTES_MAX);
    (void)m->broadcast(bytes, (int)count, m->byte, 0, m->world);
}

static void mpi_close(collective *self) {
    mpi *m = mpi_of(self);
    (void)m->finalize();
    free(m); /* the library stays: it cannot be started twice in a process */
}

static const collective_ops ops = {.name = "mpi",
                                   .close = mpi_close,
                                   .send = mpi_send,
                                   .receive = mpi_receive,
                                   .has_come = mpi_has_come,
                                   .broadcast = mpi_broadcast};

static bool take_symbols(mpi *m, void *library) {
    const struct {
        const char *name;
        void *place;
    } symbols[] = {
        {"ompi_mpi_comm_world", &m->world},
        {"ompi_mpi_byte", &m->byte},
        {"MPI_Init_thread", &m->init},
        {"MPI_Finalize", &m->finalize},
        {"MPI_Comm_rank", &m->rank},
        {"MPI_Comm_size", &m->size},
        {"MPI_Send", &m->send},
        {"MPI_Recv", &m->receive},
        {"MPI_Iprobe", &m->probe},
        {"MPI_Bcast", &m->broadcast},
    };
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (symbol == NULL) return false;
        *(void **)symbols[i].place = symbol;
    }
    return true;
}

bool collective_mpi_is_there(void) {
    return getenv("OMPI_COMM_WORLD_SIZE") != NULL;
}

hd_status collective_mpi_open(collective **out, hd_error *error) {
    mpi *m = calloc(1, sizeof(*m));
    if (m == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL); /* its plug-ins look for its symbols */
    int provided = 0, rank = 0, count = 1;
    hd_status status = HD_OK;
    if (library == NULL || !take_symbols(m, library)) {
        status = hd_error_set(error, HD_UNSUPPORTED,
                              "started by mpirun, but Open MPI's %s cannot be opened: install libopenmpi3", LIBRARY);
    } else if (m->init(NULL, NULL, THREAD_SERIALIZED, &provided) != 0 || provided < THREAD_SERIALIZED) {
        status = hd_error_set(error, HD_UNSUPPORTED, "this Open MPI cannot be called by one thread after the other");
    }
    if (status != HD_OK) {
        free(m);
        return status;
    }
    (void)m->rank(m->world, &rank);
    (void)m->size(m->world, &count);
    m->base = (collective){.ops = &ops, .rank = (uint32_t)rank, .count = (uint32_t)count};
    hd_log(HD_LOG_INFO, "ranks", "rank=%d count=%d over=mpi", rank, count);
    *out = &m->base;
    return HD_OK;
}
