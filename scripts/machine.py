# SPDX-License-Identifier: GPL-2.0
"""QEMU: the command line of the guest, a test whether KVM works here, and a guest whose
two serial lines are read while it runs."""

import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

import console

TOP = pathlib.Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
LOGS = BUILD / "log"
QEMU = "qemu-system-x86_64"
# Without five-level page tables: while the kernel identifies the processor it forgets
# that it uses them, and KASAN then takes an interrupt for a bug.
CPU = "max,la57=off"
PROBE_SECONDS = 8
EXIT = re.compile(r"^# exit (\d+)$")


def die(message):
    sys.exit(f"error: {message}")


def kernel_name(impl, debug):
    if impl not in ("rust", "c"):
        die(f"IMPL is '{impl}'; give IMPL=rust or IMPL=c")
    return f"kernel-{impl}" + ("-debug" if debug else "")


def kernel_image(name):
    image = BUILD / name / "arch/x86/boot/bzImage"
    if not image.exists():
        die(f"{name} is not built; run 'make kernel' with the same IMPL and DEBUG first")
    return image


def command(image, initrd, append, *, kvm=False, icount=False, iommu=False, serial):
    """Returns the QEMU command line. `append` ends with the arguments of init after
    `--`. With `iommu`, two devices that have no other purpose are behind an IOMMU."""
    if not shutil.which(QEMU):
        die(f"{QEMU} is not in the build root; remove build/root and run 'make toolchain'")
    # Counting instructions takes a single CPU; a guest nanosecond then is one
    # instruction.
    # The MP table, with which kernels without ACPI find CPUs, has one CPU of each socket.
    machine = ["-icount", "shift=0,sleep=off", "-smp", "1"] if icount else ["-smp", "2,sockets=2"]
    if iommu:
        machine += ["-machine", "q35", "-device", "intel-iommu", *["-device", "pci-testdev"] * 2]
    options = [
        "-accel", "kvm" if kvm and not icount else "tcg", *machine,
        "-cpu", CPU, "-m", "2G", "-display", "none",
        "-nic", "none", "-no-reboot", *serial,
        "-kernel", str(image), "-initrd", str(initrd),
        # On a busy machine, the timer may seem not to tick when the kernel checks it.
        "-append", f"console=ttyS0 panic=-1 no_timer_check {append}",
    ]
    return [QEMU, *options]


def use_kvm(image):
    """Returns whether a guest under KVM starts a program within seconds.

    /dev/kvm proves nothing: on some hosts it is there and the guest hangs
    before its first message. The answer is kept for this host's kernel.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    host = pathlib.Path("/proc/version").read_text()
    cache = BUILD / "kvm-probe"
    if cache.exists():
        answer, _, known = cache.read_text().partition("\n")
        if known == host:
            return answer == "yes"
    script = BUILD / "kvm-probe.init"
    script.write_text("#!/bin/sh\necho KVM-PROBE-REACHED-INIT\nreboot -f\n")
    initrd = BUILD / "kvm-probe.cpio"
    subprocess.run([TOP / "scripts/initramfs", initrd, script], check=True)
    try:
        output = subprocess.run(
            command(image, initrd, "kunit.enable=0", kvm=True, serial=["-serial", "stdio", "-monitor", "none"]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=PROBE_SECONDS, check=False).stdout
    except subprocess.TimeoutExpired as hung:
        output = hung.stdout or b""
    answer = b"KVM-PROBE-REACHED-INIT" in output
    cache.write_text(f"{'yes' if answer else 'no'}\n{host}")
    initrd.unlink()
    script.unlink()
    if not answer:
        print(f"        KVM is present, but no guest boots under it in {PROBE_SECONDS} s: using QEMU's TCG")
    return answer


class MemorySaver(threading.Thread):
    """Saves `length` bytes of the guest's memory, from the physical address `start` on,
    in the file `path` once the guest has ended."""

    def __init__(self, start, length, path):
        super().__init__(daemon=True)
        self.start_address, self.length, self.path = start, length, path
        self.folder = tempfile.TemporaryDirectory()
        self.path.unlink(missing_ok=True)

    def _socket(self):
        return f"{self.folder.name}/qmp"

    def options(self):
        return ["-action", "shutdown=pause", "-qmp", f"unix:{self._socket()},server=on,wait=off"]

    def run(self):
        qmp = QEMUMonitorProtocol(self._socket())
        while not pathlib.Path(self._socket()).exists():
            time.sleep(0.1)
        try:
            qmp.connect()
            while qmp.pull_event(wait=True)["event"] != "SHUTDOWN":
                pass
            qmp.cmd("pmemsave", val=self.start_address, size=self.length, filename=str(self.path))
            qmp.cmd("quit")
        except (OSError, EOFError, QMPError):
            pass  # The guest was killed, and the code that did so reports why.


class Guest:
    """A running guest. Its console is ttyS0, the output of its programs ttyS1. The
    memory that `saved` saves is complete when problems() has returned. A thread calls
    `ended` when QEMU has ended. `options` are more options of QEMU."""

    def __init__(self, image, initrd, append, *, limit, log, watch, icount=False, iommu=False, saved=None, ended=None,
                 options=()):
        self.limit = limit
        self.watch = watch
        self.status = None
        self.timed_out = False
        self.cpu_seconds = None
        self.begin = time.monotonic()
        self.end = None
        self.subtest = self.last = ""
        self.console = queue.Queue()
        self.report = queue.Queue()
        LOGS.mkdir(parents=True, exist_ok=True)
        self.console_log = LOGS / f"{log}.console.log"
        report_log = LOGS / f"{log}.report.log"
        console_end, console_qemu = os.pipe()
        report_end, report_qemu = os.pipe()
        serial = ["-serial", f"file:/dev/fd/{console_qemu}", "-serial", f"file:/dev/fd/{report_qemu}",
                  "-monitor", "none"]
        serial += options
        if saved:
            serial += saved.options()
        self.qemu = subprocess.Popen(
            command(image, initrd, append, kvm=not icount and use_kvm(image), icount=icount, iommu=iommu,
                    serial=serial),
            stdin=subprocess.DEVNULL, pass_fds=(console_qemu, report_qemu))
        if saved:
            saved.start()
        os.close(console_qemu)
        os.close(report_qemu)
        self.readers = [
            threading.Thread(target=self._read, args=arguments, daemon=True)
            for arguments in ((console_end, self.console, self.console_log, watch.line, ended),
                              (report_end, self.report, report_log, None, None))]
        self.timer = threading.Timer(limit, self._time_out)
        self.timer.daemon = True
        self.timer.start()
        for reader in self.readers:
            reader.start()

    def _read(self, end, lines, log, look, ended):
        with os.fdopen(end, "rb") as pipe, open(log, "w", encoding="utf-8") as copy:
            for line in pipe:
                text = line.decode(errors="replace").replace("\r", "").rstrip("\n")
                print(text, file=copy, flush=True)
                if look:
                    look(text)
                self.last = console.STAMP.sub("", text).strip() or self.last
                self.subtest = self.last.partition("# Subtest: ")[2] or self.subtest
                lines.put(text)
        # Both lines close when QEMU ends. The results may be read long after that.
        self.end = time.monotonic()
        self.timer.cancel()
        lines.put(None)
        if ended:
            ended()

    def _time_out(self):
        self.timed_out = True
        self.kill()

    def kill(self):
        # Not by Popen.kill(), which would take the exit status that problems() waits for.
        if self.qemu.returncode is None:
            os.kill(self.qemu.pid, signal.SIGKILL)

    def at_work(self):
        """Returns the group of tests that runs, if any, and the last line of output."""
        return ": ".join(filter(None, (self.subtest, self.last)))

    def console_lines(self):
        """Yields the console's lines as they come, until the guest has ended."""
        while (line := self.console.get()) is not None:
            yield line

    def report_lines(self):
        """Yields the lines of the programs. The last line, which is not yielded, is the
        exit status."""
        while (line := self.report.get()) is not None:
            if match := EXIT.match(line):
                self.status = int(match[1])
            else:
                yield line

    def problems(self):
        """Waits for the end of the guest. Returns its problems, one line each."""
        _, status, usage = os.wait4(self.qemu.pid, 0)
        status = self.qemu.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        for reader in self.readers:
            reader.join()
        found = []
        if self.timed_out:
            found.append(f"the guest did not end within {self.limit:g} s; "
                         f"see the end of {self.console_log}, or give a larger TIMEOUT")
        elif status:
            found.append(f"QEMU ended with status {status}; its message is above")
        elif self.status is None:
            found.append(f"the guest ended before its job did; see the end of {self.console_log}")
        for words in self.watch.expected:
            found.append(f"the kernel did not report '{words}', which a test had announced; see {self.console_log}")
        for report in self.watch.reports:
            print("\n".join(["", "---- the kernel reported ----", *report, "-" * 29]))
            found.append(f"the kernel reported: {report[0]}")
        return found

    def seconds(self):
        return (self.end or time.monotonic()) - self.begin


def interruptible(main):
    """Runs main and exits with its status. Ctrl-C and TERM end the guest, too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to go on", file=sys.stderr)
        os._exit(130)
