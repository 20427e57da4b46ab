/* Whose turn is it: a service shared among priorities, and within a priority among keys, in proportion, by virtual time.
 *
 *   priority      interactive   normal   batch           each use of the service by a flow (a priority and a key) advances
 *   weight             16          4        1            its own clock by what was used, and its priority's clock by that
 *                    ┌──┴──┐       │      ┌─┴─┐          divided by the weight. The turn is of the priority whose clock is
 *   keys, equal      a  b  c       a      d   e          furthest behind, and there of the key that is.
 *
 * Who asks for less than its share is served at once: it is behind. Who asks for more waits for the others, but is not
 * left out by them: while it gets nothing its clock stands still, and those that are served pass it. Of three priorities that
 * all have more to do than there is service, they get 16/21, 4/21 and 1/21; keys of one priority get the same, however many
 * requests each has waiting.
 *
 * Keys without number that each come once would all begin where one of them always waits, and never pass a key that waits and
 * has used much. So a priority has one more clock: where its keys would be had each that is there got the same (generalised
 * processor sharing's virtual time). It goes on with whatever is used, and nobody begins before it. What a key had too
 * much goes with it: the clock goes back to the furthest of those that are left, or a new key would wait until they have
 * got as much.
 *
 * Nobody saves up: who has nothing that waits gets all that it asks for, however little that is, and others may use the rest.
 * So the clock of a flow of which nothing waits, or nothing is there, is set with its next request, or when one loses its
 * place, to that of those who wait at least, or where nobody waits to the furthest one; that of a priority likewise. Nobody
 * gets rid of what was used either: keys that have gone keep their clocks until KEPT_FLOWS others have come.
 *
 * Pure: no wall clock, no I/O; units are the caller's (tokens). Threads: one owner.
 * Sources: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996; Parekh, Gallager, "A Generalized Processor
 * Sharing Approach to Flow Control", IEEE/ACM ToN 1993; the two levels as in hierarchical packet fair queueing. Rejected:
 * strict priorities with ageing, whose latencies depend on how the ageing was tuned, and deficit round robin, which needs
 * a quantum as large as the largest request. */
#ifndef MU_BASE_FAIR_H
#define MU_BASE_FAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mu_priority { MU_PRIORITY_INTERACTIVE, MU_PRIORITY_NORMAL, MU_PRIORITY_BATCH, MU_PRIORITY_COUNT };

struct mu_fair_flow {
    uint64_t key, clock;
    uint32_t n_user, n_waiting; /* requests of it that are there; those of them that are not served */
    enum mu_priority priority;
};

struct mu_fair { /* zeroed is empty */
    struct mu_fair_flow *flow;
    size_t n_flow, cap;
    uint64_t clock[MU_PRIORITY_COUNT];
    uint64_t floor[MU_PRIORITY_COUNT];     /* clocks of new flows where no flow of the priority has users */
    uint64_t even[MU_PRIORITY_COUNT];      /* where its flows would be had each that is there got the same, */
    uint64_t rest[MU_PRIORITY_COUNT];      /* and what is left over of dividing by them */
    uint32_t n_present[MU_PRIORITY_COUNT]; /* flows that have users */
    uint32_t n_user[MU_PRIORITY_COUNT], n_waiting[MU_PRIORITY_COUNT];
    uint64_t class_floor;
};

void mu_fair_free(struct mu_fair *f);

/* One request more of that key. Returns its flow, for the functions below; -1: no memory. */
int mu_fair_enter(struct mu_fair *f, enum mu_priority priority, uint64_t key);
void mu_fair_leave(struct mu_fair *f, int flow); /* one less */
/* One request of the flow that is there waits; one waits no more: it is served, or about to leave. */
void mu_fair_wait(struct mu_fair *f, int flow);
void mu_fair_unwait(struct mu_fair *f, int flow);
void mu_fair_charge(struct mu_fair *f, int flow, uint64_t used); /* a flow that is there used so much */

/* Below 0: a's turn is before b's; above 0: after; 0: they are one flow, or alike. */
int mu_fair_compare(const struct mu_fair *f, int a, int b);
/* The same of two priorities. */
int mu_fair_compare_priorities(const struct mu_fair *f, enum mu_priority a, enum mu_priority b);

/* Whether priority a is more urgent than b, and its turn would be before b's had b used so much more. */
bool mu_fair_goes_ahead(const struct mu_fair *f, enum mu_priority a, enum mu_priority b, uint64_t used);

/* A key's number. What differs in text may, very rarely, share a number, and then a share. */
uint64_t mu_fair_key(const char *text);

#endif
