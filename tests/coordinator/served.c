#include "tests/coordinator/served.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

void served_init(served *s, const char *script) {
    hd_log_set_level(HD_LOG_ERROR);
    *s = (served){.config = COORDINATOR_CONFIG_DEFAULTS, .script = {.text = script}};
    s->config.listen_address = "127.0.0.1:0";
    s->config.connections_max = 512;
}

void served_open(served *s) {
    hd_error error;
    assert_int_equal(text_model_open("tests/coordinator/model", &s->text, &error), HD_OK);
    assert_int_equal(hd_metrics_open(&s->metrics), HD_OK);
    s->worker = fake_worker_open(&s->script);
    s->config.worker = fake_worker_rpc(s->worker);
    s->config.text = s->text;
    s->config.metrics = s->metrics;
    hd_status status = coordinator_open(&s->config, &s->coordinator, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
    s->address = coordinator_address(s->coordinator);
}

void served_close(served *s) {
    if (s->coordinator != NULL) coordinator_close(s->coordinator, 10000);
    fake_worker_close(s->worker);
    hd_metrics_close(s->metrics);
    text_model_close(s->text);
}

raw_answer served_post_with(const served *s, const char *path, const char *extra_headers, const char *body) {
    int fd = raw_connect(s->address);
    raw_post(fd, path, extra_headers, body);
    raw_answer answer = raw_receive(fd);
    raw_hang_up(fd);
    return answer;
}

raw_answer served_post(const served *s, const char *path, const char *body) {
    return served_post_with(s, path, "", body);
}

raw_answer served_get(const served *s, const char *path) {
    int fd = raw_connect(s->address);
    raw_get(fd, path, "");
    raw_answer answer = raw_receive(fd);
    raw_hang_up(fd);
    return answer;
}

void served_wait_running(const served *s, uint32_t count) {
    for (int i = 0; i < 10000; i++) {
        if (fake_worker_running(s->worker) == count) return;
        usleep(1000);
    }
    assert_int_equal(fake_worker_running(s->worker), count);
}

double served_metric(const served *s, const char *name) {
    char *text;
    size_t bytes;
    assert_int_equal(hd_metrics_render(s->metrics, &text, &bytes), HD_OK);
    double value = -1;
    size_t length = strlen(name);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) != 0 || line[length] != ' ') continue;
        value = atof(line + length);
        break;
    }
    free(text);
    return value;
}
