/* Where the fixtures are (docs/testing.md). */
#ifndef MU_TESTS_FIXTURES_H
#define MU_TESTS_FIXTURES_H

/* cmocka.h needs these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The fixtures' folder. Where there is none the case ends here and says so in words that ./check counts. */
static inline const char *fixtures_dir(void)
{
    static char dir[512];
    const char *given = getenv("MUSTER_FIXTURES"), *source = getenv("MUSTER_SOURCE_DIR");
    if (given)
        snprintf(dir, sizeof dir, "%s", given);
    else
        snprintf(dir, sizeof dir, "%s/../shared/fixtures", source ? source : ".");
    if (access(dir, R_OK) != 0) {
        print_message("left out: no fixtures at %s (set MUSTER_FIXTURES)\n", dir);
        skip();
    }
    return dir;
}

#endif
