/* What this machine has and how fast it is, measured on a thread of its own so that nobody waits for it but the
 * caller. */
#ifndef MU_WORKER_INVENTORY_H
#define MU_WORKER_INVENTORY_H

#include <stdbool.h>

#include "base/status.h"
#include "muster/v1/internal.pb-c.h"
#include "transport/rpc.h"

struct mu_inventory;

enum mu_status mu_inventory_start(struct mu_inventory **inv_out, struct mu_err *err);
/* Any thread; never waits. Answers call with an InventoryReply. */
void mu_inventory_ask(struct mu_inventory *inv, struct mu_rpc_call *call,
                      const Muster__Internal__V1__InventoryRequest *req);
void mu_inventory_stop(struct mu_inventory *inv);    /* NULL is fine; calls that still come are refused */
void mu_inventory_destroy(struct mu_inventory *inv); /* when no call can come any more; NULL is fine */

#endif
