/* For tests of model files: a folder of their own, files made of bytes, and messages that must say certain things. */
#ifndef MU_TESTS_MODEL_FILES_UTIL_H
#define MU_TESTS_MODEL_FILES_UTIL_H

/* cmocka.h needs these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/status.h"
#include "tests/fixtures.h"

static char *test_dir;

static inline int make_test_dir(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    (void)state;
    return mu_run_dir_create(&test_dir, &err) == MU_OK ? 0 : -1;
}

static inline int remove_test_dir(void **state)
{
    (void)state;
    mu_run_dir_remove(test_dir);
    mu_free(test_dir);
    return 0;
}

/* The path of a file in the test's folder; the last four stay valid. */
static inline const char *test_path(const char *name)
{
    static char paths[4][512];
    static int next;
    char *p = paths[next++ & 3];
    snprintf(p, sizeof paths[0], "%s/%s", test_dir, name);
    return p;
}

static inline const char *write_bytes(const char *name, const void *data, size_t len)
{
    const char *path = test_path(name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    return path;
}

/* The error has this code and its text holds every one of the strings given, up to NULL. */
static inline void assert_err(const struct mu_err *err, enum mu_status code, ...)
{
    va_list ap;
    const char *part;
    if (err->code != code)
        fail_msg("expected %s, found %s: %s", mu_status_name(code), mu_status_name(err->code), err->text);
    va_start(ap, code);
    while ((part = va_arg(ap, const char *)))
        if (!strstr(err->text, part)) fail_msg("expected '%s' in: %s", part, err->text);
    va_end(ap);
}

/* A file of the fixtures; ends the test where there are none. */
static inline const char *fixture_path(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", fixtures_dir(), name);
    return path;
}

#endif
