/* generation_read.c - the few fields of generation_config.json that a server honours.
 *
 * do_sample is not among them: a request without temperature samples at the makers' temperature, as other servers
 * do. */
#include "model/generation_read.h"

static void add_eos(json_fields *fields, const json_t *value, model_config *config) {
    json_int_t id = json_integer_value(value);
    if (!json_is_integer(value) || id < 0 || id > (json_int_t)UINT32_MAX) {
        json_fields_fail(fields, HD_INVALID, "eos_token_id", "must be a token id or an array of them");
    } else if (config->eos_id_count == MODEL_EOS_IDS_MAX) {
        json_fields_fail(fields, HD_UNSUPPORTED, "eos_token_id", "has more than %u ids", MODEL_EOS_IDS_MAX);
    } else {
        config->eos_ids[config->eos_id_count++] = (uint32_t)id;
    }
}

static void read_eos(json_fields *fields, model_config *config) {
    const json_t *eos = json_object_get(fields->object, "eos_token_id");
    if (eos == NULL) return;
    config->eos_id_count = 0;
    if (json_is_null(eos)) return;
    if (!json_is_array(eos)) {
        add_eos(fields, eos, config);
        return;
    }
    for (size_t i = 0; i < json_array_size(eos); i++) add_eos(fields, json_array_get(eos, i), config);
}

void generation_ids_read(json_fields *fields, bool has_default_ids, model_config *config) {
    if (has_default_ids) {
        config->has_bos = true;
        config->bos_id = 1;
        config->eos_ids[0] = 2;
        config->eos_id_count = 1;
    }
    read_eos(fields, config);
    if (json_fields_is_present(fields, "bos_token_id")) {
        config->has_bos = json_fields_is_given(fields, "bos_token_id");
        config->bos_id = (uint32_t)json_fields_integer_or(fields, "bos_token_id", 0, UINT32_MAX, 0);
    }
}

static void read_sampling(json_fields *fields, model_config *config) {
    config->default_temperature = (float)json_fields_number_or(fields, "temperature", 0.0, 100.0, 1.0);
    config->default_top_p = (float)json_fields_number_or(fields, "top_p", 0.0, 1.0, 1.0);
    config->default_top_k = (uint32_t)json_fields_integer_or(fields, "top_k", 0, UINT32_MAX, 0);
    config->default_min_p = (float)json_fields_number_or(fields, "min_p", 0.0, 1.0, 0.0);
    config->default_repetition_penalty = (float)json_fields_number_or(fields, "repetition_penalty", 0.01, 100.0, 1.0);
}

hd_status generation_config_read(const config_text *source, model_config *config, hd_error *error) {
    json_t *root = NULL;
    if (source->text != NULL) {
        hd_status status = json_object_parse(source->path, source->text, source->bytes, &root, error);
        if (status != HD_OK) return status;
    }
    json_fields fields = {.object = root, .path = source->path, .scope = "", .error = error};
    read_sampling(&fields, config);
    generation_ids_read(&fields, false, config);
    json_decref(root);
    return fields.status;
}
