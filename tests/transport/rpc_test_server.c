/* rpc_test_server ADDRESS: the test service for foreign clients. Prints "port N" and serves until its standard input
 * ends, where it takes two commands: "serving NAME 0|1" sets health, "counts" prints how many calls started, ended,
 * were cancelled. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc_test_service.h"

static struct test_service service;

int main(int argc, char **argv)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_rpc_server *server;
    char line[256], name[200];
    int serving;
    mu_log_init("rpc_test_server");
    if (argc != 2 || test_service_start(&service, argv[1], 0, &server, &err) != MU_OK) {
        fprintf(stderr, "rpc_test_server: %s\n", err.text);
        return 1;
    }
    mu_rpc_server_set_health(server, "", true);
    printf("port %d\n", mu_rpc_server_port(server, 0));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "serving %199s %d", name, &serving) == 2) {
            mu_rpc_server_set_health(server, name, serving != 0);
        } else if (strcmp(line, "counts\n") == 0) {
            printf("counts %d %d %d\n", atomic_load(&service.n_started), atomic_load(&service.n_done),
                   atomic_load(&service.n_cancelled));
            fflush(stdout);
        }
    }
    mu_rpc_server_stop(server, 500);
    return 0;
}
