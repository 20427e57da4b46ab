/* Processes by pidfd: a number can be given to a stranger between a look and a kill, a descriptor cannot.
 * Threads: the caller's own objects. */
#ifndef MU_WORKER_PROCS_H
#define MU_WORKER_PROCS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct mu_proc {
    pid_t pid;
    int fd; /* pidfd, readable when the process has ended; -1: none */
};

/* Opens pid if it is (still) a child of parent (0: whoever's); false: it is not there. */
bool mu_proc_open(pid_t pid, pid_t parent, struct mu_proc *proc_out);
void mu_proc_close(struct mu_proc *p); /* twice is fine */
bool mu_proc_gone(const struct mu_proc *p);

/* The path of this program's file. false: that file is not there any more, mostly since another one took its place. */
bool mu_proc_own_path(char *path, size_t path_bytes);

/* Kills `root` (our child, and the first of its session; closed where it has gone already) and its children, whoever they
 * are, with SIGKILL; `known` ones too. Waits until all have gone or the deadline has passed; reaps what is ours to reap.
 * The status of root as waitpid has it in *status_out, -1 where it had been reaped or did not go. false: something is
 * left. */
bool mu_proc_kill_tree(struct mu_proc *root, struct mu_proc *known, int n_known, int64_t deadline_ns, int *status_out);

#endif
