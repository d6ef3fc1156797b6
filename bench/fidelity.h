/* fidelity.h - `hadal bench fidelity`: what a selection costs in answers, against full attention of the same model.
 *
 *   agreement    the text itself, told token by token: how often the likeliest next token is the same, and the
 *                Kullback-Leibler divergence of the selection's distribution from full attention's, in nats
 *   needle       " The magic number of WORD is DDDDD." at even depths, one a document, asked for at its end
 *   multi-needle as many in one document, asked for one after another
 *   key-value    a document of lines "KEY: VALUE", asked for the value of one key
 * Documents are made of the text given. Whether a model can answer at all is what the row of `full` shows.
 * Threads: as decoder.h. */
#ifndef BENCH_FIDELITY_H
#define BENCH_FIDELITY_H

#include "bench/decode.h"
#include "bench/decoder.h"
#include "model/text/text.h"

#define FIDELITY_SELECTIONS_MAX 12u

typedef struct fidelity_config {
    decoder_config decoder;
    const char *model_name;
    const text_model *text;
    const char *text_path;  /* UTF-8, at least as many tokens as the longest context and steps more */
    const char *selections; /* separated by semicolons; full comes first, named or not */
    bench_list lengths;     /* tokens of the contexts */
    uint32_t trials, steps; /* questions of each kind; tokens told for agreement */
    /* Where it is there, agreement is with the distributions in this file instead of this run's `full`; else they are
     * written to it. For number formats: one run with the other flags first. */
    const char *reference_path;
    const char *json_path, *chart_path;
} fidelity_config;

hd_status bench_fidelity_run(const fidelity_config *config, hd_error *error);

#endif
