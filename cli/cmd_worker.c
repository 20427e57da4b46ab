/* muster worker: the daemon that runs ranks on this machine. */
#include "cli/cli.h"
#include "worker/worker.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct mu_worker_options *o = state->input;
    switch (key) {
    case 'l': o->listen = arg; return 0;
    case 'm': o->mpirun = arg; return 0;
    case 'p': o->parent_pid = (int)mu_arg_long(arg, 1, 1 << 30, "--parent", state); return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    case ARGP_KEY_END:
        if (!o->listen) argp_error(state, "--listen ADDRESS is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int mu_cmd_worker(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"listen", 'l', "ADDRESS", 0,
         "where the coordinator reaches it: unix:/path (a private folder) or 127.0.0.1:PORT", 0},
        {"mpirun", 'm', "PATH", 0, "the mpirun to use (found in PATH)", 0},
        {"parent", 'p', "PID", 0, "end when this process ends", 0},
        {0},
    };
    static const struct argp argp = {options,
                                     parse,
                                     "--listen ADDRESS",
                                     "Starts, watches and ends the ranks of gangs on this machine. 'muster serve' "
                                     "starts one by itself; whoever reaches ADDRESS may use this machine."
                                     "\vExample:\n  muster worker --listen unix:/run/user/1000/muster-worker.sock\n",
                                     0,
                                     0,
                                     0};
    struct mu_worker_options opt = {0};
    argp_parse(&argp, argc, argv, 0, 0, &opt);
    return mu_worker_main(&opt);
}
