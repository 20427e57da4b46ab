/* Cases that each want a process of their own, as what they set is read once: in_child runs one, CHECK ends it. */
#ifndef MU_TESTS_KERNELS_CHILD_H
#define MU_TESTS_KERNELS_CHILD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(cond)                                                            \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
            _exit(1);                                                          \
        }                                                                      \
    } while (0)
#define CHECK_SAYS(err, words)                                                                       \
    do {                                                                                             \
        if (!strstr((err)->text, words)) {                                                           \
            fprintf(stderr, "%s:%d: \"%s\" lacks \"%s\"\n", __FILE__, __LINE__, (err)->text, words); \
            _exit(1);                                                                                \
        }                                                                                            \
    } while (0)

static inline void in_child(void (*what)(void))
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        what();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail_msg("the child ended with status %#x", status);
}

#endif
