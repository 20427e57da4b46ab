/* main(): finds the verb and hands it the rest of the command line. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "cli/cli.h"
#include "kernels/kernels.h"
#include "shard/plan_gpus.h"
#include "worker/worker.h"

static const struct mu_verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary; /* NULL: ours alone or a second name, not listed */
} verbs[] = {
    {"serve", mu_cmd_serve, "serve a model over gRPC, split over ranks"},
    {"run", mu_cmd_run, "chat with a model or get one answer, here or from a server"},
    {"embed", mu_cmd_embed, "texts to vectors, here or on a server"},
    {"list", mu_cmd_list, "list the models on this machine, of every store"},
    {"ls", mu_cmd_list, NULL},
    {"show", mu_cmd_show, "show what a model is, and the memory it needs"},
    {"pull", mu_cmd_pull, "download a model into Muster's own store"},
    {"create", mu_cmd_create, "make a model of another one and a Modelfile"},
    {"cp", mu_cmd_cp, "give a model another name"},
    {"rm", mu_cmd_rm, "remove models from Muster's own store"},
    {"bench", mu_cmd_bench, "measure prompt and decode speed against this machine's limits"},
    {"plan", mu_cmd_plan, "show who would hold and compute what"},
    {"ps", mu_cmd_ps, "show a server's gang, ranks and load"},
    {"logits", mu_cmd_logits, "write the logits of given token ids"},
    {"template", mu_cmd_template, "render a conversation as the model's prompt"},
    {"perplexity", mu_cmd_perplexity, "score a text"},
    {"tokenize", mu_cmd_tokenize, "text to token ids, as JSON"},
    {"detokenize", mu_cmd_detokenize, "token ids to text, as JSON"},
    {"synth", mu_cmd_synth, "write a random model of any shape"},
    {"worker", mu_cmd_worker, "the daemon that runs ranks on this machine"},
    {"_served", mu_cmd_served, NULL},
    {"_launch", mu_launch_main, NULL},
    {"_rank", mu_rank_main, NULL},
    {"_gpus", mu_gpus_main, NULL},
};
enum { N_VERB = (int)(sizeof verbs / sizeof *verbs) };

static void usage(FILE *f)
{
    fputs("Usage: muster VERB [ARGUMENTS]\n"
          "Runs large language models split over processes and machines.\n\n",
          f);
    for (int i = 0; i < N_VERB; i++)
        if (verbs[i].summary) fprintf(f, "  %-11s %s\n", verbs[i].name, verbs[i].summary);
    fputs("\nMODEL is a path, or a name that 'muster list' shows.\n"
          "\nExamples:\n"
          "  muster list\n"
          "  muster run model.gguf\n"
          "  muster run llama3.2 'Hello'\n"
          "  muster serve model.gguf --split 2:1/1\n"
          "  muster run model.gguf 'Hello' --server 127.0.0.1:7400\n"
          "  muster bench model.gguf -p 512 -n 128\n\n"
          "'muster help VERB' tells more of each.\n",
          f);
}

/* A standard descriptor that we were started without would be that of the next file that is opened, and what is told
 * there a part of it. It is held instead, the wrong way round, so that using it fails as before. */
static void standard_hold(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
}

int main(int argc, char **argv)
{
    standard_hold();
    argp_err_exit_status = MU_EXIT_USAGE;
    if (argc < 2) {
        usage(stderr);
        return MU_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "help") && argc > 2) {
        static char option[] = "--help";
        name = argv[2];
        argv[2] = option;
        argc = 3;
    } else if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        usage(stdout);
        return mu_out_finish(name, MU_EXIT_OK);
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        printf("muster %s (arithmetic contract %d)\n", MUSTER_VERSION, MU_ARITHMETIC_VERSION);
        return mu_out_finish(name, MU_EXIT_OK);
    }
    for (int i = 0; i < N_VERB; i++) {
        if (strcmp(name, verbs[i].name)) continue;
        mu_signals_tidy();
        signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error of a write, told by mu_out_finish */
        signal(SIGCHLD, SIG_DFL); /* ignored, as some have what they start, no child's end could be waited for */
        mu_log_init(name[0] == '_' ? name + 1 : name);
        struct mu_err err = MU_ERR_INIT;
        /* A rank reads MUSTER_FAULT itself once it knows its number. */
        if (strcmp(name, "_rank") && mu_fault_init(-1, &err)) return mu_cli_fail(name, &err);
        char whole[64];
        snprintf(whole, sizeof whole, "muster %s", name);
        argv[1] = whole;
        return mu_out_finish(name, verbs[i].run(argc - 1, argv + 1));
    }
    fprintf(stderr, "muster: there is no verb '%s'; 'muster --help' lists them\n", name);
    return MU_EXIT_USAGE;
}
