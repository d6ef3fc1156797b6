/* disk_rate.c - one io_uring that is kept full. */
#include "bench/disk_rate.h"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/random.h"

enum { AT_ONCE = 128, PIECE = 1024, PIECES_MAX = 1024 };

typedef struct disk {
    int file;
    uint64_t places, bytes; /* bytes: of a read; places: where one may begin, a piece apart */
    unsigned char *room;    /* [AT_ONCE] reads */
    struct io_uring ring;
    bench_random random;
} disk;

static void start(disk *d, uint64_t index) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&d->ring);
    uint64_t at = bench_random_below(&d->random, d->places) * d->bytes;
    io_uring_prep_read(entry, d->file, d->room + index * d->bytes, (unsigned)d->bytes, at);
    io_uring_sqe_set_data64(entry, index);
}

/* 0 where a read fails. */
static double run(disk *d, double seconds) {
    uint64_t start_ns = hd_now_ns(), total = 0; /* reads */
    for (uint64_t i = 0; i < AT_ONCE; i++) start(d, i);
    for (double passed = 0.0; passed < seconds; passed = (double)(hd_now_ns() - start_ns) * 1e-9) {
        if (io_uring_submit_and_wait(&d->ring, 1) < 0) return 0.0;
        struct io_uring_cqe *done;
        while (io_uring_peek_cqe(&d->ring, &done) == 0) {
            if (done->res != (int)d->bytes) return 0.0;
            start(d, io_uring_cqe_get_data64(done));
            io_uring_cqe_seen(&d->ring, done);
            total++;
        }
    }
    return (double)total / ((double)(hd_now_ns() - start_ns) * 1e-9);
}

double bench_disk_reads(const char *path, uint64_t bytes, double seconds) {
    uint64_t pieces = (bytes + PIECE / 2) / PIECE;
    disk d = {.bytes = (pieces < 1 ? 1 : pieces > PIECES_MAX ? PIECES_MAX : pieces) * PIECE, .random = {3}};
    d.file = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (d.file < 0) return 0.0;
    off_t size = lseek(d.file, 0, SEEK_END);
    d.places = size > 0 ? (uint64_t)size / d.bytes : 0;
    d.room = hd_region_map(AT_ONCE * d.bytes);
    double rate = 0.0;
    if (d.places > 0 && d.room != NULL && io_uring_queue_init(AT_ONCE, &d.ring, 0) == 0) {
        rate = run(&d, seconds);
        io_uring_queue_exit(&d.ring); /* waits for what is out */
    }
    hd_region_unmap(d.room, AT_ONCE * d.bytes);
    close(d.file);
    return rate;
}
