/* operator_rows.c - the fields of docs/api.md, Operators. */
#include "coordinator/operator_rows.h"

#include <inttypes.h>

static void write_member(text_buffer *out, const char *before, const char *text) {
    text_buffer_text(out, before);
    text_buffer_json_text(out, text);
}

void operator_rows_node(text_buffer *out, bool is_first, const operator_node *node) {
    write_member(out, is_first ? "{\"id\":" : ",{\"id\":", node->id);
    write_member(out, ",\"role\":", node->role);
    write_member(out, ",\"state\":", node->state);
    write_member(out, ",\"address\":", node->address);
    write_member(out, ",\"model\":", node->model);
    text_buffer_format(
        out, ",\"kv_bytes\":%" PRIu64 ",\"kv_capacity\":%" PRIu64 ",\"sequences\":%" PRIu64 ",\"safe_to_delete\":%s}",
        node->kv_bytes, node->kv_capacity, node->sequences, node->is_safe ? "true" : "false");
}

void operator_rows_sequence(text_buffer *out, bool is_first, const operator_sequence *s) {
    text_buffer_format(out, "%s{\"id\":\"%016" PRIx64 "\"", is_first ? "" : ",", s->id);
    write_member(out, ",\"model\":", s->model);
    write_member(out, ",\"worker\":", s->worker);
    write_member(out, ",\"state\":", s->state);
    text_buffer_format(out,
                       ",\"prompt_tokens\":%" PRIu64 ",\"prompt_done\":%" PRIu64 ",\"generated_tokens\":%" PRIu64
                       ",\"choices\":%" PRIu32 ",\"epoch\":%" PRIu64 ",\"age_s\":%" PRIu64 "}",
                       s->prompt_tokens, s->prompt_done, s->generated_tokens, s->choices, s->epoch, s->age_s);
}

void operator_rows_steps(text_buffer *out, bool is_first, const char *node, const worker_load *load) {
    write_member(out, is_first ? "{\"node\":" : ",{\"node\":", node);
    text_buffer_format(out,
                       ",\"steps\":%" PRIu64 ",\"rows\":%" PRIu64 ",\"dense_us\":%" PRIu64 ",\"wire_us\":%" PRIu64
                       ",\"attention_us\":%" PRIu64 "}",
                       load->steps, load->step_rows, load->dense_us, load->wire_us, load->attention_us);
}
