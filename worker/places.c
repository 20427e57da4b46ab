/* A worker's folders: run folders of base/io.h, which locks them and sweeps those of dead processes. */
#include "worker/places.h"

#include "base/alloc.h"
#include "base/io.h"

enum mu_status mu_places_open(struct mu_places *p, struct mu_err *err)
{
    mu_run_dir_sweep();
    enum mu_status st = mu_run_dir_create(&p->run_dir, err);
    if (st != MU_OK) return st;
    if (mu_run_dir_create_in("/dev/shm", &p->shm_dir, NULL) != MU_OK) p->shm_dir = NULL;
    return MU_OK;
}

void mu_places_close(struct mu_places *p)
{
    mu_run_dir_remove(p->run_dir);
    mu_run_dir_remove(p->shm_dir);
    mu_free(p->run_dir);
    mu_free(p->shm_dir);
    *p = (struct mu_places){0};
}
