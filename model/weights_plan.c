/* weights_plan.c - the tensors of a model, in order, each looked up, checked and given its place. */
#include "model/weights_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "model/architecture.h"
#include "model/weights_layout.h"

/* The first wrong tensor sets status, and nothing is added after it. */
typedef struct planner {
    const model_config *config;
    model_share share;
    const safetensors *files;
    weight_plan *plan;
    uint32_t part_capacity;
    bool *is_used; /* [tensors of files] */
    hd_error *error;
    hd_status status;
} planner;

uint32_t weight_part_column(const weight_part *part, uint32_t row) {
    if (!part->is_gated) return part->first_column + row;
    return part->first_column + row / KERNEL_PANEL * (2 * KERNEL_PANEL) + row % KERNEL_PANEL;
}

static const char *print_shape(uint32_t rank, const uint64_t *shape, char *text, size_t text_bytes) {
    size_t length = (size_t)snprintf(text, text_bytes, "[");
    for (uint32_t i = 0; i < rank && length < text_bytes; i++) {
        length += (size_t)snprintf(text + length, text_bytes - length, "%s%" PRIu64, i == 0 ? "" : ", ", shape[i]);
    }
    if (length < text_bytes) snprintf(text + length, text_bytes - length, "]");
    return text;
}

static bool has_shape(const safetensors_tensor *tensor, uint32_t rank, const uint64_t *shape) {
    return tensor->rank == rank && memcmp(tensor->shape, shape, rank * sizeof(*shape)) == 0;
}

/* NULL, with status set, when there is no such tensor or it is not what the configuration needs. */
static const safetensors_tensor *take_tensor(planner *p, const char *name, uint32_t rank, const uint64_t *shape) {
    if (p->status != HD_OK) return NULL;
    const safetensors_tensor *tensor = safetensors_find(p->files, name);
    if (tensor == NULL) {
        const char *path = safetensors_count(p->files) > 0 ? safetensors_path(p->files, safetensors_at(p->files, 0))
                                                           : "model.safetensors";
        p->status = hd_error_set(p->error, HD_CORRUPT, "%s: tensor '%s' is missing%s", path, name,
                                 safetensors_file_count(p->files) > 1 ? ", here and in the other files" : "");
        return NULL;
    }
    const char *path = safetensors_path(p->files, tensor);
    if (!has_shape(tensor, rank, shape)) {
        char found[96], wanted[96];
        p->status = hd_error_set(p->error, HD_CORRUPT, "%s: tensor '%s' has shape %s, but config.json asks for %s",
                                 path, name, print_shape(tensor->rank, tensor->shape, found, sizeof(found)),
                                 print_shape(rank, shape, wanted, sizeof(wanted)));
        return NULL;
    }
    if (!tensor->is_float) {
        p->status = hd_error_set(p->error, HD_UNSUPPORTED, "%s: tensor '%s' is %s; weights must be BF16, F16 or F32",
                                 path, name, tensor->type);
        return NULL;
    }
    p->is_used[safetensors_index_of(p->files, tensor)] = true;
    return tensor;
}

static void add_part(planner *p, const weight_part *part) {
    if (p->status != HD_OK) return;
    weight_plan *plan = p->plan;
    if (plan->part_count == p->part_capacity) {
        uint32_t capacity = p->part_capacity == 0 ? 256 : p->part_capacity * 2;
        weight_part *parts = hd_alloc(capacity * sizeof(*parts), HD_CACHE_LINE);
        if (parts == NULL) {
            p->status = hd_error_set(p->error, HD_NO_MEMORY, "no memory for the list of tensors");
            return;
        }
        if (plan->part_count > 0) memcpy(parts, plan->parts, plan->part_count * sizeof(*parts));
        hd_free(plan->parts);
        plan->parts = parts;
        p->part_capacity = capacity;
    }
    plan->parts[plan->part_count++] = *part;
    plan->tensor_bytes += (uint64_t)part->rows * part->columns * hd_dtype_bits(part->tensor->dtype) / 8;
}

static void add_floats(planner *p, const char *name, uint32_t count, uint32_t first, float **floats) {
    const safetensors_tensor *tensor = take_tensor(p, name, 1, (uint64_t[]){count});
    if (tensor == NULL) return;
    add_part(p, &(weight_part){.tensor = tensor,
                               .data = tensor->data,
                               .rows = 1,
                               .columns = count,
                               .floats = floats,
                               .first_column = first});
}

/* A whole tensor of [rows, matrix->k]. */
static void add_matrix(planner *p, const char *name, uint32_t rows, uint32_t columns, uint32_t first_column,
                       bool is_gated, model_columns kept, kernel_matrix *matrix) {
    const safetensors_tensor *tensor = take_tensor(p, name, 2, (uint64_t[]){rows, columns});
    if (tensor == NULL) return;
    add_part(p, &(weight_part){.tensor = tensor,
                               .data = tensor->data,
                               .rows = rows,
                               .columns = columns,
                               .matrix = matrix,
                               .first_column = first_column,
                               .kept = kept,
                               .is_gated = is_gated});
}

static void add_attention(planner *p, uint32_t index, model_layer *layer) {
    const model_config *config = p->config;
    const dense_names *names = config->architecture->names;
    uint32_t query_width = config->query_heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    const struct {
        const char *pattern;
        uint32_t first, width;
    } inputs[] = {{names->query, 0, query_width},
                  {names->key, query_width, kv_width},
                  {names->value, query_width + kv_width, kv_width}};
    char name[MODEL_TENSOR_NAME_BYTES];
    add_floats(p, model_tensor_name(names->attention_norm, index, 0, "", name), config->hidden_size, 0,
               &layer->attention_norm);
    for (int i = 0; i < 3; i++) {
        model_tensor_name(inputs[i].pattern, index, 0, ".weight", name);
        add_matrix(p, name, inputs[i].width, config->hidden_size, inputs[i].first, false,
                   model_share_columns(p->share, query_width + 2 * kv_width, 1), &layer->qkv);
    }
    for (int i = 0; i < 3 && config->qkv_bias; i++) {
        model_tensor_name(inputs[i].pattern, index, 0, ".bias", name);
        add_floats(p, name, inputs[i].width, inputs[i].first, &layer->qkv_bias);
    }
    if (config->qk_norm) {
        add_floats(p, model_tensor_name(names->query_norm, index, 0, "", name), config->head_dim, 0,
                   &layer->query_norm);
        add_floats(p, model_tensor_name(names->key_norm, index, 0, "", name), config->head_dim, 0, &layer->key_norm);
    }
    model_tensor_name(names->attention_output, index, 0, ".weight", name);
    add_matrix(p, name, config->hidden_size, query_width, 0, false,
               model_share_columns(p->share, config->hidden_size, 1), &layer->attention_output);
    if (!config->output_bias) return;
    add_floats(p, model_tensor_name(names->attention_output, index, 0, ".bias", name), config->hidden_size, 0,
               &layer->attention_output_bias);
}

static void add_dense(planner *p, uint32_t index, model_layer *layer) {
    const dense_names *names = p->config->architecture->names;
    uint32_t hidden_size = p->config->hidden_size, width = p->config->intermediate_size;
    char name[MODEL_TENSOR_NAME_BYTES];
    model_columns gated = model_share_columns(p->share, 2 * HD_ALIGN_UP(width, KERNEL_PANEL), 2);
    add_matrix(p, model_tensor_name(names->gate, index, 0, "", name), width, hidden_size, 0, true, gated,
               &layer->gate_up);
    add_matrix(p, model_tensor_name(names->up, index, 0, "", name), width, hidden_size, KERNEL_PANEL, true, gated,
               &layer->gate_up);
    add_matrix(p, model_tensor_name(names->down, index, 0, "", name), hidden_size, width, 0, false,
               model_share_columns(p->share, hidden_size, 1), &layer->down);
}

/* The spelling whose first expert tensor is there; the first one, so that it is named as missing, when none is. */
static const expert_names *choose_expert_names(const planner *p, uint32_t index) {
    const model_architecture *architecture = p->config->architecture;
    for (unsigned i = 0; i < ARCHITECTURE_EXPERT_NAMES_MAX && architecture->expert_names[i] != NULL; i++) {
        const expert_names *names = architecture->expert_names[i];
        char name[MODEL_TENSOR_NAME_BYTES];
        model_tensor_name(names->gate_up != NULL ? names->gate_up : names->gate, index, 0, "", name);
        if (safetensors_find(p->files, name) != NULL) return names;
    }
    return architecture->expert_names[0];
}

static void add_separate_experts(planner *p, const expert_names *names, uint32_t index, model_layer *layer) {
    uint32_t hidden_size = p->config->hidden_size, width = p->config->expert_intermediate_size;
    model_columns gated = weights_layout_alone(p->share, 2 * HD_ALIGN_UP(width, KERNEL_PANEL));
    model_columns down = weights_layout_alone(p->share, hidden_size);
    char name[MODEL_TENSOR_NAME_BYTES];
    for (uint32_t e = 0; e < p->config->expert_count; e++) {
        model_expert *expert = &layer->experts[e];
        add_matrix(p, model_tensor_name(names->gate, index, e, "", name), width, hidden_size, 0, true, gated,
                   &expert->gate_up);
        add_matrix(p, model_tensor_name(names->up, index, e, "", name), width, hidden_size, KERNEL_PANEL, true, gated,
                   &expert->gate_up);
        add_matrix(p, model_tensor_name(names->down, index, e, "", name), hidden_size, width, 0, false, down,
                   &expert->down);
    }
}

/* The same parts in the same order, cut out of two large tensors. */
static void add_fused_experts(planner *p, const expert_names *names, uint32_t index, model_layer *layer) {
    uint64_t hidden_size = p->config->hidden_size, width = p->config->expert_intermediate_size,
             count = p->config->expert_count;
    char name[MODEL_TENSOR_NAME_BYTES];
    model_tensor_name(names->gate_up, index, 0, "", name);
    const safetensors_tensor *gate_up = take_tensor(p, name, 3, (uint64_t[]){count, 2 * width, hidden_size});
    model_tensor_name(names->down, index, 0, "", name);
    const safetensors_tensor *down = take_tensor(p, name, 3, (uint64_t[]){count, hidden_size, width});
    if (p->status != HD_OK) return;
    uint64_t gate_bytes = width * hidden_size * hd_dtype_bits(gate_up->dtype) / 8;
    uint64_t down_bytes = width * hidden_size * hd_dtype_bits(down->dtype) / 8;
    model_columns gated_columns = weights_layout_alone(p->share, 2 * HD_ALIGN_UP((uint32_t)width, KERNEL_PANEL));
    for (uint32_t e = 0; e < count; e++) {
        const unsigned char *gate = gate_up->data + e * 2 * gate_bytes;
        weight_part part = {.tensor = gate_up,
                            .data = gate,
                            .rows = (uint32_t)width,
                            .columns = (uint32_t)hidden_size,
                            .matrix = &layer->experts[e].gate_up,
                            .kept = gated_columns,
                            .is_gated = true};
        add_part(p, &part);
        part.data = gate + gate_bytes;
        part.first_column = KERNEL_PANEL;
        add_part(p, &part);
        add_part(p, &(weight_part){.tensor = down,
                                   .data = down->data + e * down_bytes,
                                   .rows = (uint32_t)hidden_size,
                                   .columns = (uint32_t)width,
                                   .kept = weights_layout_alone(p->share, (uint32_t)hidden_size),
                                   .matrix = &layer->experts[e].down});
    }
}

static void add_sparse(planner *p, uint32_t index, model_layer *layer) {
    const expert_names *names = choose_expert_names(p, index);
    char name[MODEL_TENSOR_NAME_BYTES];
    model_tensor_name(names->router, index, 0, "", name);
    add_matrix(p, name, p->config->expert_count, p->config->hidden_size, 0, false,
               weights_layout_alone(p->share, p->config->expert_count), &layer->router);
    if (names->gate_up != NULL) add_fused_experts(p, names, index, layer);
    else add_separate_experts(p, names, index, layer);
}

/* Tied embeddings are one tensor under either name. A file that has both although config.json ties them is taken at its
 * word, as Hugging Face does. */
static void add_embeddings(planner *p, model_weights *weights) {
    const model_config *config = p->config;
    const dense_names *names = config->architecture->names;
    const uint64_t shape[] = {config->vocabulary_size, config->hidden_size};
    const char *embedding = names->embedding, *lm_head = names->lm_head;
    if (config->tied_embeddings && safetensors_find(p->files, lm_head) == NULL) lm_head = embedding;
    if (config->tied_embeddings && safetensors_find(p->files, embedding) == NULL) embedding = lm_head;
    p->plan->embedding = take_tensor(p, embedding, 2, shape);
    model_columns kept = model_share_columns(p->share, config->vocabulary_size, 1);
    if (embedding != lm_head)
        add_matrix(p, embedding, config->vocabulary_size, config->hidden_size, 0, false, kept, NULL);
    add_matrix(p, lm_head, config->vocabulary_size, config->hidden_size, 0, false, kept, &weights->lm_head);
}

static bool begins_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

/* A tensor of the model that nothing reads means that configuration and weights disagree, for instance about biases.
 * Others (a value head, extra prediction layers) leave the logits alone. Rotary frequencies were saved by old releases
 * and are computed anyway. */
static void check_unused(planner *p) {
    for (uint32_t i = 0; i < safetensors_count(p->files) && p->status == HD_OK; i++) {
        const safetensors_tensor *tensor = safetensors_at(p->files, i);
        if (p->is_used[i] || strstr(tensor->name, ".rotary_emb.") != NULL) continue;
        if (begins_with(tensor->name, "model.") || begins_with(tensor->name, "lm_head.")) {
            p->status = hd_error_set(p->error, HD_UNSUPPORTED,
                                     "%s: tensor '%.100s' has no place in the %s that config.json describes",
                                     safetensors_path(p->files, tensor), tensor->name, p->config->architecture->name);
        }
        p->plan->ignored_example = tensor->name;
        p->plan->ignored_count++;
    }
}

static void add_model(planner *p, model_weights *weights) {
    const model_config *config = p->config;
    char name[MODEL_TENSOR_NAME_BYTES];
    for (uint32_t i = 0; i < config->layer_count && p->status == HD_OK; i++) {
        model_layer *layer = &weights->layers[i];
        add_attention(p, i, layer);
        add_floats(p, model_tensor_name(config->architecture->names->mlp_norm, i, 0, "", name), config->hidden_size, 0,
                   &layer->mlp_norm);
        if (config->is_sparse[i]) add_sparse(p, i, layer);
        else add_dense(p, i, layer);
    }
    add_floats(p, config->architecture->names->final_norm, config->hidden_size, 0, &weights->final_norm);
    add_embeddings(p, weights);
    check_unused(p);
}

hd_status weight_plan_init(const model_config *config, const safetensors *files, model_weights *weights,
                           weight_plan *plan, hd_error *error) {
    *plan = (weight_plan){0};
    planner p = {.config = config, .share = weights->share, .files = files, .plan = plan, .error = error};
    p.is_used = hd_alloc_zeroed(safetensors_count(files) * sizeof(bool), 1);
    if (p.is_used == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the list of tensors");
    add_model(&p, weights);
    hd_free(p.is_used);
    if (p.status != HD_OK) weight_plan_fini(plan);
    return p.status;
}

void weight_plan_fini(weight_plan *plan) {
    hd_free(plan->parts);
    *plan = (weight_plan){0};
}
