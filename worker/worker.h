/* The entry points of the worker's processes; cli/ calls them from main(). Each returns the exit status.
 *
 *   muster worker   the daemon of one machine: serves muster.internal.v1.Worker, launches and watches gangs
 *   muster _launch  becomes mpirun after tying its life to its parent and, where possible, entering a private network
 *   muster _rank    one process of a gang
 *
 * (daemon.c, launch.c, rank.c) */
#ifndef MU_WORKER_WORKER_H
#define MU_WORKER_WORKER_H

struct mu_worker_options {
    const char *listen; /* "unix:/path" or "host:port" */
    int parent_pid;     /* > 0: end when that process ends (muster serve's own worker) */
    const char *mpirun; /* NULL: found in PATH */
};
int mu_worker_main(const struct mu_worker_options *opt);

/* argv[0] is the verb itself: {"_launch", PARENT_PID, "--", MPIRUN, …} and {"_rank", GANG_FOLDER}. */
int mu_launch_main(int argc, char **argv);
int mu_rank_main(int argc, char **argv);

#endif
