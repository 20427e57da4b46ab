/* What a request asks of the form of its completion, checked before it waits: a schema that cannot be honoured is
 * answered at once, with the compiler's sentence. Texts that came lately are not compiled again, whether they compiled or
 * not.
 *
 * Threads: one (the text thread). */
#ifndef MU_COORDINATOR_CONSTRAINT_H
#define MU_COORDINATOR_CONSTRAINT_H

#include "model/constraint.h"
#include "muster/v1/internal.pb-c.h"
#include "muster/v1/muster.pb-c.h"

/* The request's constraint: its kind and text, borrowed. false: it has none. */
bool mu_request_constraint(const Muster__V1__GenerateRequest *q, enum mu_constraint_kind *kind_out,
                           const char **text_out);
/* What the gang gets of it; the text is borrowed from q. */
void mu_submit_constraint(const Muster__V1__GenerateRequest *q, Muster__Internal__V1__EngineSubmit *s);

struct mu_constraint_checks; /* texts that came lately; NULL is an empty one */
/* err is not NULL. */
enum mu_status mu_constraint_check(struct mu_constraint_checks **checks, const Muster__V1__GenerateRequest *q,
                                   struct mu_err *err);
void mu_constraint_checks_free(struct mu_constraint_checks *checks);

#endif
