/* etcd_server.h - an etcd of the test's own: on free loopback ports, with its data in a temporary directory. */
#ifndef TESTS_PROTO_ETCD_SERVER_H
#define TESTS_PROTO_ETCD_SERVER_H

#include <sys/types.h>

typedef struct etcd_server {
    char directory[64], url[64], peer_url[64];
    pid_t process;
} etcd_server;

/* Returns when it answers; fails the test after 20 s, or where etcd is not installed. */
void etcd_server_start(etcd_server *server);
void etcd_server_kill(etcd_server *server);    /* kill -9; its data stays */
void etcd_server_restart(etcd_server *server); /* on the same port, with the same data */
void etcd_server_stop(etcd_server *server);    /* and its data goes */

#endif
