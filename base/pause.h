/* What a thread does between two looks at a word that another one will change soon. */
#ifndef MU_BASE_PAUSE_H
#define MU_BASE_PAUSE_H

static inline void mu_cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` is a no-op on most cores; isb waits about as long as x86's pause */
#endif
}

#endif
