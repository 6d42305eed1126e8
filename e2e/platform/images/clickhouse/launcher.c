/*
 * ClickHouse from its library, with the interface of the public server image that our manifests use: data in
 * /var/lib/clickhouse, HTTP on 8123, SIGTERM ends it. Further arguments are passed to the server; --path, --http_port and
 * --listen_host take the place of ours, so that several run on one machine.
 *
 * The server runs in a child, because process 1 of a container ignores the signals it has no handler for.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Seconds that the server has to end before it is killed; its tables survive either. */
#define PATIENCE 5

/* Opens the HTTP port, and goes on for ever, since the library ends with its last query. */
#define SERVE                                                                            \
    "SYSTEM START LISTEN HTTP; SELECT sleepEachRow(1) FROM numbers(1000000000) SETTINGS " \
    "function_sleep_max_microseconds_per_block=0, max_block_size=1, max_execution_time=0 FORMAT Null"

static volatile pid_t server;

static void stop(int signal) {
    (void)signal;
    if (server > 0) kill(server, SIGTERM);
    alarm(PATIENCE);
}

static void kill_server(int signal) {
    (void)signal;
    if (server > 0) kill(server, SIGKILL);
}

static int given(int extra, char **arguments, const char *option) {
    for (int i = 0; i < extra; i++)
        if (!strncmp(arguments[i], option, strlen(option))) return 1;
    return 0;
}

static int serve(int extra, char **arguments) {
    void *library = dlopen("libchdb.so", RTLD_NOW);
    if (!library) {
        fprintf(stderr, "clickhouse: %s\n", dlerror());
        return 1;
    }
    void *(*run)(int, char **) = (void *(*)(int, char **))dlsym(library, "query_stable_v2");
    if (!run) {
        fprintf(stderr, "clickhouse: %s\n", dlerror());
        return 1;
    }
    /* A port that nobody named is not opened. */
    int native = given(extra, arguments, "--tcp_port=");
    char *own[] = {"--path=/var/lib/clickhouse", "--http_port=8123", "--listen_host=0.0.0.0"};
    char *options[] = {"--path=", "--http_port=", "--listen_host="};
    char **all = calloc(sizeof own / sizeof *own + extra + 4, sizeof *all);
    if (!all) return 1;
    int count = 0;
    all[count++] = "clickhouse";
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!given(extra, arguments, options[i])) all[count++] = own[i];
    all[count++] = "--multiquery";
    all[count++] = native ? "--query=SYSTEM START LISTEN TCP; " SERVE : "--query=" SERVE;
    memcpy(all + count, arguments, extra * sizeof *all);
    run(count + extra, all);
    fprintf(stderr, "clickhouse: the server has ended by itself\n");
    return 1;
}

int main(int argc, char **argv) {
    struct sigaction on_term = {.sa_handler = stop}, on_alarm = {.sa_handler = kill_server};
    sigaction(SIGTERM, &on_term, 0);
    sigaction(SIGINT, &on_term, 0);
    sigaction(SIGALRM, &on_alarm, 0);
    server = fork();
    if (server < 0) {
        perror("clickhouse: fork");
        return 1;
    }
    if (server == 0) {
        signal(SIGTERM, SIG_DFL);
        signal(SIGINT, SIG_DFL);
        signal(SIGALRM, SIG_DFL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return serve(argc - 1, argv + 1);
    }
    int status = 0;
    for (;;) {
        pid_t ended = wait(&status);
        if (ended == server) break;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
