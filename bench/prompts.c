/* prompts.c - a pool of plain words, as ids where the server tells them. */
#include "bench/prompts.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define TOKENIZE_TIMEOUT_MS 10000
#define BYTES_PER_TOKEN_MAX 16 /* an id of ten digits and a comma, or a word of the list and a space */

static const char *const words[] = {
    "time",    "year",   "people", "way",    "day",    "man",      "thing",   "woman",  "life",   "child",  "world",
    "school",  "state",  "group",  "hand",   "part",   "place",    "case",    "week",   "work",   "point",  "number",
    "night",   "water",  "room",   "mother", "area",   "money",    "story",   "fact",   "month",  "lot",    "right",
    "study",   "book",   "eye",    "job",    "word",   "side",     "kind",    "head",   "house",  "page",   "friend",
    "father",  "power",  "hour",   "game",   "line",   "end",      "member",  "law",    "car",    "city",   "name",
    "team",    "minute", "idea",   "body",   "back",   "parent",   "face",    "level",  "office", "door",   "health",
    "person",  "art",    "war",    "party",  "result", "change",   "morning", "reason", "girl",   "guy",    "moment",
    "air",     "force",  "foot",   "boy",    "age",    "policy",   "music",   "market", "sense",  "nation", "plan",
    "college", "death",  "effect", "class",  "field",  "control",  "care",    "road",   "leg",    "step",   "rate",
    "wall",    "paper",  "tree",   "space",  "ground", "form",     "event",   "site",   "term",   "film",   "table",
    "court",   "paint",  "nature", "river",  "bridge", "garden",   "winter",  "stone",  "letter", "glass",  "animal",
    "bird",    "fish",   "horse",  "ship",   "island", "mountain", "forest",  "cloud",  "summer",
};
#define WORD_COUNT (sizeof(words) / sizeof(words[0]))

static char *word_list(void) {
    char *text = malloc(WORD_COUNT * BYTES_PER_TOKEN_MAX + 1);
    if (text == NULL) return NULL;
    char *end = text;
    for (size_t i = 0; i < WORD_COUNT; i++) end = stpcpy(stpcpy(end, " "), words[i]);
    return text;
}

static hd_status take_ids(const json_t *answer, prompts *p) {
    const json_t *tokens = json_object_get(answer, "tokens");
    size_t count = json_array_size(tokens);
    if (count < WORD_COUNT / 2) return HD_NOT_FOUND;
    p->ids = calloc(count, sizeof(*p->ids));
    if (p->ids == NULL) return HD_NO_MEMORY;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(tokens, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > UINT32_MAX) {
            free(p->ids);
            p->ids = NULL;
            return HD_NOT_FOUND;
        }
        p->ids[i] = (uint32_t)json_integer_value(id);
    }
    p->id_count = count;
    return HD_OK;
}

/* HD_NOT_FOUND where the server does not tell ids. */
static hd_status ask_ids(http_client *client, const char *model, prompts *p) {
    char *text = word_list(), *answer = NULL;
    /* The text goes by both names that servers know it by. */
    json_t *question = text == NULL ? NULL
                                    : json_pack("{s:s, s:s, s:s, s:b}", "model", model, "prompt", text, "content", text,
                                                "add_special_tokens", false);
    char *body = question != NULL ? json_dumps(question, JSON_COMPACT) : NULL;
    int http_status = 0;
    hd_status status = body == NULL
                           ? HD_NO_MEMORY
                           : http_client_fetch(client, "/tokenize", body, TOKENIZE_TIMEOUT_MS, &http_status, &answer);
    if (status == HD_OK && http_status != 200) status = HD_NOT_FOUND;
    if (status == HD_OK) {
        json_t *parsed = json_loads(answer, 0, NULL);
        status = take_ids(parsed, p);
        json_decref(parsed);
    }
    free(answer);
    free(body);
    json_decref(question);
    free(text);
    return status;
}

hd_status prompts_open(http_client *client, const char *model, bool wants_text, uint64_t seed, uint64_t prefix_tokens,
                       prompts *p) {
    *p = (prompts){.prefix_seed = seed, .prefix_tokens = prefix_tokens};
    hd_status status = wants_text ? HD_NOT_FOUND : ask_ids(client, model, p);
    return status == HD_NOT_FOUND ? HD_OK : status;
}

void prompts_close(prompts *p) {
    free(p->ids);
    *p = (prompts){0};
}

char *prompts_make(const prompts *p, bench_random *random, uint64_t tokens) {
    char *text = malloc((tokens + 1) * BYTES_PER_TOKEN_MAX + 3);
    if (text == NULL) return NULL;
    char *end = stpcpy(text, p->ids != NULL ? "[" : "\"");
    bench_random prefix = {p->prefix_seed};
    for (uint64_t i = 0; i < tokens; i++) {
        bench_random *source = i < p->prefix_tokens ? &prefix : random;
        if (p->ids != NULL)
            end += sprintf(end, "%s%u", i > 0 ? "," : "", p->ids[bench_random_below(source, p->id_count)]);
        else end = stpcpy(stpcpy(end, i > 0 ? " " : ""), words[bench_random_below(source, WORD_COUNT)]);
    }
    strcpy(end, p->ids != NULL ? "]" : "\"");
    return text;
}
