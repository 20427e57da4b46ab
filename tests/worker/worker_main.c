/* The worker's processes without the command line: muster's main() in small, for tests.
 *   worker_main worker ADDRESS [PARENT_PID] | _launch … | _rank … */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/worker.h"

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "worker") == 0) {
        struct mu_worker_options opt = {.listen = argv[2], .parent_pid = argc > 3 ? atoi(argv[3]) : 0};
        return mu_worker_main(&opt);
    }
    if (argc > 1 && strcmp(argv[1], "_launch") == 0) return mu_launch_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "_rank") == 0) return mu_rank_main(argc - 1, argv + 1);
    fprintf(stderr, "worker_main: worker ADDRESS [PARENT_PID], _launch or _rank\n");
    return 2;
}
