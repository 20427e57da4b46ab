"""A virtual machine with two NUMA nodes of two cores each, as qemu emulates it (no KVM): a Debian kernel, and an
initramfs of busybox, this build's muster with its shared libraries, Open MPI, a model, and a script that runs as init.

What is missing is said in one sentence and skips the test (exit status 77). The kernel is $MUSTER_TEST_KERNEL, or
Debian's linux-image-cloud-amd64, fetched with apt-get download once and unpacked below the build folder, not installed.
"""
import glob
import os
import shutil
import stat
import subprocess
import sys

LIBS = "/usr/lib/x86_64-linux-gnu"
KERNEL = "linux-image-cloud-amd64"
MODULE_FOLDERS = (f"{LIBS}/openmpi/lib/openmpi3", f"{LIBS}/pmix2/lib/pmix", f"{LIBS}/pmix/lib/pmix")
DATA_FOLDERS = ("/usr/share/openmpi", "/etc/openmpi", f"{LIBS}/pmix2/share", f"{LIBS}/openmpi/share")
NODE_MB = 320


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def qemu():
    found = shutil.which("qemu-system-x86_64")
    if not found:
        skip("there is no qemu-system-x86_64 (Debian: qemu-system-x86)")
    return found


def busybox():
    out = subprocess.run(["dpkg-query", "-L", "busybox-static"], capture_output=True, text=True)
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if out.returncode == 0 and path in out.stdout.split():
            return path
    skip("there is no static busybox (Debian: busybox-static)")


def kernel(folder):
    """The path of a vmlinuz with NUMA, shared memory and control groups."""
    named = os.environ.get("MUSTER_TEST_KERNEL")
    if named:
        return named
    have = glob.glob(f"{folder}/boot/vmlinuz-*")
    if have:
        return have[0]
    os.makedirs(folder, exist_ok=True)
    depends = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True)
    package = [line.split()[-1] for line in depends.stdout.splitlines() if "Depends: linux-image" in line]
    if not package:
        skip(f"apt does not know {KERNEL}; name a kernel in MUSTER_TEST_KERNEL")
    got = subprocess.run(["apt-get", "download", package[0]], cwd=folder, capture_output=True, text=True, timeout=300)
    debs = glob.glob(f"{folder}/*.deb")
    if got.returncode or not debs:
        skip(f"{package[0]} cannot be downloaded; name a kernel in MUSTER_TEST_KERNEL")
    # the kernel alone: its modules are a hundred megabytes and not needed
    with subprocess.Popen(["dpkg", "--fsys-tarfile", debs[0]], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-x", "-C", folder, "--wildcards", "./boot/vmlinuz-*"], stdin=tar.stdout, check=True)
    os.remove(debs[0])
    return glob.glob(f"{folder}/boot/vmlinuz-*")[0]


def libraries(paths):
    """Every shared library that these files load at start, and the loader."""
    found = set()
    for path in paths:
        out = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        for line in out.splitlines():
            words = line.split()
            found.update(w for w in words if w.startswith("/"))
    return found


class Initramfs:
    """A cpio archive of the kind newc, which the kernel unpacks at boot."""

    def __init__(self):
        self.out = bytearray()
        self.known = set()

    def entry(self, name, mode, data=b"", rdev=(0, 0)):
        if name in self.known:
            return
        self.known.add(name)
        parent = os.path.dirname(name)
        if parent:
            self.entry(parent, stat.S_IFDIR | 0o755)
        raw = name.encode() + b"\0"
        fields = (len(self.known), mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0)
        self.out += b"070701" + b"".join(b"%08x" % f for f in fields) + raw
        self.out += b"\0" * (-len(self.out) % 4) + data
        self.out += b"\0" * (-len(self.out) % 4)

    def file(self, name, path, mode=0o755):
        with open(path, "rb") as f:
            self.entry(name.lstrip("/"), stat.S_IFREG | mode, f.read())

    def link(self, name, to):
        self.entry(name.lstrip("/"), stat.S_IFLNK | 0o777, to.encode())

    def folder(self, path):
        for base, _, names in os.walk(path):
            for name in names:
                full = os.path.join(base, name)
                if os.path.isfile(full):
                    self.file(full, os.path.realpath(full))

    def write(self, path):
        self.entry("TRAILER!!!", 0)
        with open(path, "wb") as f:
            f.write(self.out)


def initramfs(path, muster, files, init):
    """files: name there -> path here; init: text of a shell script."""
    a = Initramfs()
    for folder in ("proc", "sys", "dev", "tmp", "root", "cg"):
        a.entry(folder, stat.S_IFDIR | 0o755)
    a.entry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1))
    a.file("bin/busybox", busybox())
    a.link("bin/sh", "busybox")
    a.file("bin/muster", muster)
    programs = [muster]
    for name in ("mpirun", "orted"):
        real = os.path.realpath(shutil.which(name) or f"/usr/bin/{name}")
        a.file(f"usr/bin/{name}", real)
        a.file(real, real)
        programs.append(real)
    for folder in MODULE_FOLDERS + DATA_FOLDERS:
        a.folder(folder)
    programs += [f for d in MODULE_FOLDERS for f in glob.glob(d + "/*.so")]
    for lib in libraries(programs):
        a.file(lib, os.path.realpath(lib))
    for name, source in files.items():
        a.file(name, source, 0o644)
    a.entry("etc/passwd", stat.S_IFREG | 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
    a.entry("etc/hosts", stat.S_IFREG | 0o644, b"127.0.0.1 localhost vm\n")
    a.entry("init", stat.S_IFREG | 0o755, init.encode())
    a.write(path)


def boot(vmlinuz, archive, log, timeout_s):
    """Runs it to its end; what it printed, which can be read in the file log meanwhile."""
    command = ["nice", "-n", "10", qemu(), "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "4", "-m", f"{2 * NODE_MB}M",
               "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none", "-serial", f"file:{log}",
               "-kernel", vmlinuz, "-initrd", archive,
               # memory must not wander by itself to where it is used: that would hide what is placed wrongly
               "-append", "console=ttyS0 loglevel=4 panic=-1 numa_balancing=disable"]
    for node in (0, 1):
        command += ["-object", f"memory-backend-ram,id=m{node},size={NODE_MB}M",
                    "-numa", f"node,nodeid={node},cpus={2 * node}-{2 * node + 1},memdev=m{node}"]
    command += ["-numa", "dist,src=0,dst=1,val=32"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
        told = done.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        told = f"not done after {timeout_s} s\n"
    with open(log, errors="replace") as f:
        return f.read().replace("\r", "") + told
