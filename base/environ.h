/* The environment of a child that is mpirun, and its name of the machine. */
#ifndef MU_BASE_ENVIRON_H
#define MU_BASE_ENVIRON_H

/* `extra` (entries, then NULL), and ours without what other launchers and Open MPI installations left in it, which makes
 * launches fail, and without TMPDIR, which is in extra. Of that, entries that begin with `kept` stay; NULL: none. The
 * array is freed with mu_free, the entries are borrowed. NULL: no memory. */
const char **mu_environ_of_mpirun(const char *const *extra, const char *kept);

/* For the process that becomes it, of one thread. Open MPI 4.1's mpirun aborts ("stack smashing detected") where this
 * machine's name has 57 bytes or more, as names of containers may. It gets the beginning of it. */
void mu_host_name_for_mpirun(void);

#endif
