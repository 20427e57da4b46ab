/* Memory on a NUMA node, with hwloc: put there, and looked up.
 *
 * A preference and never more: where the node is full, pages come from elsewhere, and that can be told afterwards. A
 * system that refuses (containers often forbid it) leaves the rule that the first thread to touch a page decides, which
 * comes to the same where that thread is on the node.
 *
 * Threads: any; an object is read-only. */
#ifndef MU_BASE_NUMA_H
#define MU_BASE_NUMA_H

#include <stddef.h>

#include "base/status.h"

struct mu_numa;

/* For memory on that node (the system's number). NULL without an error where there is nothing to choose: node is -1, or
 * the machine has one node. */
enum mu_status mu_numa_open(int node, struct mu_numa **numa_out, struct mu_err *err);
void mu_numa_close(struct mu_numa *numa);     /* NULL is fine */
int mu_numa_node(const struct mu_numa *numa); /* -1 for NULL */

/* The pages of [p, p + bytes) come from the node from now on; those that this process has mapped already move there. Of
 * shared memory all who map it are meant. numa may be NULL: nothing happens. */
void mu_numa_bind(const struct mu_numa *numa, void *p, size_t bytes);

/* Which part of those pages is on the node, from 0 to 1, by a sample of at most 512; pages that this process has not
 * touched are left out. -1: none is known. numa may be NULL: -1. */
double mu_numa_share(const struct mu_numa *numa, const void *p, size_t bytes);

#endif
