/* fuzz_chat_template.c - a chat template and, after a zero byte, the context that it is given.
 *
 * A rendering gives text or a sentence, whatever the template does; it never takes the process along. */
#include <stdlib.h>
#include <string.h>

#include "tests/model/text/text_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char CONTEXT[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q \\u00e9\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[1,2."
    "5,true]}}}]},"
    "{\"role\":\"tool\",\"content\":\"r\"}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
    "\"parameters\":"
    "{\"properties\":{\"a\":{\"items\":{}}}}}}],\"add_generation_prompt\":true}";

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static text_model *open_smallest(void) {
    text_directory directory;
    text_model *model = NULL;
    hd_error error = {{0}};
    make_directory(&directory);
    require(text_model_open(directory.path, &model, &error) == HD_OK);
    remove_directory(&directory);
    return model;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static text_model *model;
    if (model == NULL) model = open_smallest();
    const uint8_t *end = size > 0 ? memchr(data, 0, size) : NULL;
    size_t template_bytes = end != NULL ? (size_t)(end - data) : size;
    char *template = malloc(template_bytes + 1);
    require(template != NULL);
    memcpy(template, data, template_bytes);
    template[template_bytes] = '\0';
    const char *context = end != NULL ? (const char *)end + 1 : CONTEXT;
    size_t context_bytes = end != NULL ? size - template_bytes - 1 : sizeof(CONTEXT) - 1;
    char *text = NULL;
    size_t bytes = 0;
    hd_error error = {{0}};
    hd_status status = text_render_chat(model, template, context, context_bytes, &text, &bytes, &error);
    require((status == HD_OK) == (text != NULL));
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (status == HD_OK) require(strlen(text) <= bytes);
    /* A model that exceeded its limits too often refuses to go on. */
    if (status == HD_FULL) {
        text_model_close(model);
        model = NULL;
    }
    free(text);
    free(template);
    return 0;
}
