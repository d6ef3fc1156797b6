#include "tests/proto/etcd_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/etcd.h"

#define ETCD "/usr/bin/etcd"

/* A port that was free a moment ago. */
static int free_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    close(fd);
    return ntohs(address.sin_port);
}

void etcd_server_restart(etcd_server *server) {
    if (access(ETCD, X_OK) != 0) fail_msg("%s is not there: install etcd-server, as ./run test does", ETCD);
    char cluster[96];
    snprintf(cluster, sizeof(cluster), "default=%s", server->peer_url);
    server->process = fork();
    assert_true(server->process >= 0);
    if (server->process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int nowhere = open("/dev/null", O_RDWR);
        dup2(nowhere, STDOUT_FILENO);
        dup2(nowhere, STDERR_FILENO);
        execl(ETCD, "etcd", "--data-dir", server->directory, "--listen-client-urls", server->url,
              "--advertise-client-urls", server->url, "--listen-peer-urls", server->peer_url,
              "--initial-advertise-peer-urls", server->peer_url, "--initial-cluster", cluster, (char *)NULL);
        _exit(127);
    }
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = etcd_bytes("x");
    ProtobufCMessage *answer;
    hd_error error = {{0}};
    hd_status status = etcd_call_wait(&(etcd_config){.endpoints = server->url}, &request.base, 20000, &answer, &error);
    /* One that asks for a user is there as well. */
    if (status != HD_OK && status != HD_INVALID) fail_msg("etcd does not answer: %s", error.text);
    if (status == HD_OK) protobuf_c_message_free_unpacked(answer, NULL);
}

void etcd_server_start(etcd_server *server) {
    *server = (etcd_server){.directory = "/tmp/hadal-etcd-XXXXXX"};
    assert_non_null(mkdtemp(server->directory));
    snprintf(server->url, sizeof(server->url), "http://127.0.0.1:%d", free_port());
    snprintf(server->peer_url, sizeof(server->peer_url), "http://127.0.0.1:%d", free_port());
    etcd_server_restart(server);
}

void etcd_server_kill(etcd_server *server) {
    if (server->process <= 0) return;
    kill(server->process, SIGKILL);
    waitpid(server->process, NULL, 0);
    server->process = 0;
}

void etcd_server_stop(etcd_server *server) {
    etcd_server_kill(server);
    char command[96];
    snprintf(command, sizeof(command), "rm -rf %s", server->directory);
    assert_int_equal(system(command), 0);
}
