/* rope_read.c - which fields a rope kind has, and what Hugging Face takes where they are absent. */
#include "model/rope_read.h"

#include <string.h>

#define THETA_MIN 2.0  /* yarn divides by its logarithm */
#define THETA_MAX 1e38 /* a float */
#define FACTOR_MAX 1e6
#define POSITIONS_MAX 1e15

static const struct {
    const char *name;
    rope_kind kind;
} kinds[] = {
    {"default", ROPE_NONE},  {"linear", ROPE_LINEAR}, {"dynamic", ROPE_DYNAMIC},
    {"llama3", ROPE_LLAMA3}, {"yarn", ROPE_YARN},
};

/* A field that is not known here could change the angles: newer kinds of model put their own into this object. */
static const char *const known_fields[] = {
    "rope_type",        "type",
    "rope_theta",       "partial_rotary_factor",
    "factor",           "original_max_position_embeddings",
    "low_freq_factor",  "high_freq_factor",
    "beta_fast",        "beta_slow",
    "attention_factor", "mscale",
    "mscale_all_dim",   "truncate",
    "finetuned", /* a remark of some yarn checkpoints */
};

static bool is_known_field(const char *name) {
    for (size_t i = 0; i < sizeof(known_fields) / sizeof(known_fields[0]); i++) {
        if (strcmp(known_fields[i], name) == 0) return true;
    }
    return false;
}

/* One object per layer type is the newer form for models whose layers differ. Equal ones are one rope. */
static const json_t *uniform_object(json_fields *fields, const char *name, const json_t *object) {
    const json_t *first = NULL;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (!json_is_object(value)) continue;
        if (first != NULL && !json_equal(first, value)) {
            json_fields_fail(fields, HD_UNSUPPORTED, name, "differs between layer types, which is not supported");
            return NULL;
        }
        first = value;
    }
    return first != NULL ? first : object;
}

static rope_kind read_kind(json_fields *rope_fields) {
    const char *field = json_fields_is_given(rope_fields, "rope_type") ? "rope_type" : "type";
    const char *name = json_fields_string_or(rope_fields, field, "default");
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(kinds[i].name, name) == 0) return kinds[i].kind;
    }
    json_fields_fail(rope_fields, HD_UNSUPPORTED, field,
                     "is %.40s; supported are default, linear, dynamic, llama3 and yarn", name);
    return ROPE_NONE;
}

/* The architectures here rotate whole heads; Hugging Face's code for them ignores the field or fails with it. */
static void check_rotates_whole_head(json_fields *fields) {
    double factor = json_fields_number_or(fields, "partial_rotary_factor", 0.0, 1.0, 1.0);
    if (factor != 1.0)
        json_fields_fail(fields, HD_UNSUPPORTED, "partial_rotary_factor", "is %g; only 1 is supported", factor);
}

/* A field of config.json itself goes before the one of the rope object, as in Hugging Face. */
static double read_original_positions(json_fields *fields, json_fields *rope_fields, uint64_t max_positions) {
    const char *name = "original_max_position_embeddings";
    json_fields *owner = json_fields_is_given(fields, name) ? fields : rope_fields;
    return json_fields_number_or(owner, name, 1.0, POSITIONS_MAX, (double)max_positions);
}

static void read_yarn(json_fields *rope_fields, uint64_t max_positions, rope_config *rope) {
    rope->factor = json_fields_number_or(rope_fields, "factor", 1.0, FACTOR_MAX,
                                         (double)max_positions / rope->original_max_position);
    rope->attention_factor = json_fields_number_or(rope_fields, "attention_factor", 1e-6, FACTOR_MAX, 0.0);
    rope->mscale = json_fields_number_or(rope_fields, "mscale", 0.0, FACTOR_MAX, 0.0);
    rope->mscale_all_dim = json_fields_number_or(rope_fields, "mscale_all_dim", 0.0, FACTOR_MAX, 0.0);
    rope->beta_fast = json_fields_number_or(rope_fields, "beta_fast", 0.0, FACTOR_MAX, 0.0);
    rope->beta_slow = json_fields_number_or(rope_fields, "beta_slow", 0.0, FACTOR_MAX, 0.0);
    if (rope->beta_fast == 0.0) rope->beta_fast = 32.0; /* zero counts as absent */
    if (rope->beta_slow == 0.0) rope->beta_slow = 1.0;
    rope->truncate = json_fields_bool_or(rope_fields, "truncate", true);
}

static void read_llama3(json_fields *rope_fields, rope_config *rope) {
    rope->factor = json_fields_number(rope_fields, "factor", 1.0, FACTOR_MAX);
    rope->low_freq_factor = json_fields_number(rope_fields, "low_freq_factor", 1e-6, FACTOR_MAX);
    rope->high_freq_factor = json_fields_number(rope_fields, "high_freq_factor", 1e-6, FACTOR_MAX);
    if (rope->high_freq_factor <= rope->low_freq_factor) {
        json_fields_fail(rope_fields, HD_INVALID, "high_freq_factor", "must be greater than 'low_freq_factor'");
    }
}

static void read_rope_fields(json_fields *fields, json_fields *rope_fields, uint64_t max_positions, rope_config *rope) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)rope_fields->object, key, value) {
        if (!is_known_field(key)) {
            json_fields_fail(rope_fields, HD_UNSUPPORTED, key, "is not supported");
            return;
        }
    }
    check_rotates_whole_head(rope_fields);
    rope->kind = read_kind(rope_fields);
    rope->theta = json_fields_number_or(rope_fields, "rope_theta", THETA_MIN, THETA_MAX, rope->theta);
    if (rope->kind == ROPE_LLAMA3 || rope->kind == ROPE_YARN) {
        rope->original_max_position = read_original_positions(fields, rope_fields, max_positions);
    }
    if (rope->kind == ROPE_LINEAR || rope->kind == ROPE_DYNAMIC) {
        rope->factor = json_fields_number(rope_fields, "factor", 1.0, FACTOR_MAX);
    } else if (rope->kind == ROPE_LLAMA3) {
        read_llama3(rope_fields, rope);
    } else if (rope->kind == ROPE_YARN) {
        read_yarn(rope_fields, max_positions, rope);
    }
}

void rope_config_read(json_fields *fields, const model_architecture *architecture, uint32_t head_dim,
                      uint64_t max_positions, rope_config *rope) {
    *rope = (rope_config){
        .kind = ROPE_NONE,
        .theta = json_fields_number_or(fields, "rope_theta", THETA_MIN, THETA_MAX, architecture->default_rope_theta),
        .factor = 1.0,
        .original_max_position = (double)max_positions,
        .rotary_dim = head_dim,
    };
    check_rotates_whole_head(fields);
    const char *name = "rope_scaling"; /* wins where both are given, unless it is empty */
    const json_t *object = json_fields_object(fields, name);
    if (json_object_size(object) == 0) {
        name = "rope_parameters";
        object = json_fields_object(fields, name);
    }
    if (object != NULL) object = uniform_object(fields, name, object);
    if (object == NULL) return;
    json_fields rope_fields = {
        .object = object,
        .path = fields->path,
        .scope = strcmp(name, "rope_scaling") == 0 ? "rope_scaling." : "rope_parameters.",
        .error = fields->error,
        .status = fields->status,
    };
    read_rope_fields(fields, &rope_fields, max_positions, rope);
    if (fields->status == HD_OK) fields->status = rope_fields.status;
}
