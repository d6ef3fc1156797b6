/* ranks_test.c - started by mpirun: the first process has the forward pass, the others their columns. Logits have the
 * bits of one process that has all of the weights, whatever the type and the number of rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/worker/golden_model.h"
#include "tests/worker/rig.h"

static collective *all;

static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_INT8};
enum { DTYPES = sizeof(dtypes) / sizeof(dtypes[0]), CHUNK = 300, THREADS = 1 };

static rig_options options_of(hd_dtype weights, collective *c) {
    return (rig_options){.dtype = weights,
                         .threads = THREADS,
                         .hot_bytes = 64 << 20,
                         .rows_max = 1280,
                         .sequences_max = 2,
                         .collective = c};
}

static float *logits_of(const golden_model *m, hd_dtype dtype, collective *c, uint32_t chunk, uint64_t *bytes) {
    rig r;
    rig_options options = options_of(dtype, c);
    rig_open(&r, m->directory, &options);
    *bytes = r.weights->bytes;
    float *logits = rig_logits(&r, m->token_ids, m->token_count, chunk, m->rope_length);
    rig_close(&r);
    return logits;
}

static void logits_have_the_bits_of_one_process(void **state) {
    const char *const *names;
    size_t count = golden_model_names(&names);
    for (size_t i = 0; i < count * DTYPES; i++) {
        golden_model m;
        golden_model_open(&m, names[i / DTYPES]);
        hd_dtype dtype = dtypes[i % DTYPES];
        uint64_t whole_bytes, own_bytes;
        float *one = logits_of(&m, dtype, NULL, CHUNK, &whole_bytes);
        float *shared = logits_of(&m, dtype, all, CHUNK, &own_bytes);
        print_message("%-18s %s: %llu of %llu bytes of weights here\n", m.name, hd_dtype_name(dtype),
                      (unsigned long long)own_bytes, (unsigned long long)whole_bytes);
        assert_memory_equal(one, shared, (size_t)m.token_count * m.vocabulary * sizeof(float));
        assert_true(all->count == 1 || own_bytes < whole_bytes);
        free(one);
        free(shared);
        golden_model_close(&m);
    }
}

/* Another rank, for each of the same models. */
static void serve(void) {
    const char *const *names;
    size_t count = golden_model_names(&names);
    for (size_t i = 0; i < count * DTYPES; i++) {
        golden_model m;
        golden_model_open(&m, names[i / DTYPES]);
        rig_options options = options_of(dtypes[i % DTYPES], all);
        rig r;
        rig_open(&r, m.directory, &options);
        ranks_serve(r.ranks);
        rig_close(&r);
        golden_model_close(&m);
    }
}

int main(void) {
    hd_error error = {.text = ""};
    if (collective_mpi_open(&all, &error) != HD_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_have_the_bits_of_one_process),
    };
    int failed = 0;
    if (all->rank > 0) serve();
    else failed = cmocka_run_group_tests(tests, NULL, NULL);
    /* A rank that leaves without closing ends the others, which would wait for it. */
    if (failed == 0) all->ops->close(all);
    return failed;
}
