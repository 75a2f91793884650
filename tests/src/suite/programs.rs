// SPDX-License-Identifier: GPL-2.0
//! RP: programs that nobody here wrote, confined by `ringfence`: each is learned, works
//! under what was learned, and is refused what was taken out of that again. fio is in
//! `ringfence`.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use ::ringfence::names::Op;
use ::ringfence::policy::Policy;

use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, implementation};
use crate::programs::{SERVER, confined, expect_status, learn, write_without};

pub const TESTS: &[Test] = tests! {
    "programs" {
        RP01 node_serves_under_what_was_learned (120 s);
        RP02 qemu_img_reads_under_what_was_learned (60 s);
        RP03 container_is_confined_by_its_bundle (60 s);
        RP04 program_that_probes_falls_back;
    }
};

/// A directory of one test, which is removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = PathBuf::from(format!("/tmp/programs-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    /// Returns the path of a file in this directory.
    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next test has a directory of its own.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Checks that Node.js serves a file under what was learned from it. Its library waits
/// for events by EPOLL_CTL, and aborts if that is denied.
fn node_serves_under_what_was_learned() -> TestResult {
    let folder = Folder::new()?;
    let [script, page, policy] = ["server.js", "page", "policy"].map(|name| folder.file(name));
    fs::write(&script, SERVER)?;
    fs::write(&page, "a page\n")?;
    let node = ["node", &script, &page];
    let learned = learn(&policy, &node)?;
    expect_eq("learned", &learned.ops, &[Op::EPOLL_CTL].into())?;
    let got = confined(&policy, &node)?;
    expect_eq("confined", got, (0, "a page\n".to_string()))?;
    write_without(&policy, &learned, Op::EPOLL_CTL)?;
    let (status, said) = confined(&policy, &node)?;
    expect_eq("without EPOLL_CTL", status, -libc::SIGABRT)?;
    ensure!(!said.contains("a page"), "it was served: {said}");
    Ok(Outcome::Passed)
}

/// Checks that qemu-img reads a disk image under what was learned from it, and says why
/// it does not if READ is denied.
fn qemu_img_reads_under_what_was_learned() -> TestResult {
    let folder = Folder::new()?;
    let [image, policy] = ["image", "policy"].map(|name| folder.file(name));
    fs::write(&image, vec![0; 1 << 20])?;
    let mut bench = vec!["qemu-img", "bench", "-f", "raw", "-i", "io_uring"];
    bench.extend(["-c", "16", "-d", "4", &image]);
    let learned = learn(&policy, &bench)?;
    let want = [Op::POLL_ADD, Op::READ].into();
    expect_eq("learned", &learned.ops, &want)?;
    let (status, said) = confined(&policy, &bench)?;
    ensure!(
        status == 0 && said.contains("Run completed"),
        "{status}: {said}"
    );
    write_without(&policy, &learned, Op::READ)?;
    let (status, said) = confined(&policy, &bench)?;
    expect_eq("without READ", status, 1)?;
    ensure!(said.contains("Permission denied"), "no reason: {said}");
    Ok(Outcome::Passed)
}

/// Makes the bundle of a container whose process makes a NOP by a ring. Seccomp refuses
/// the system calls of io_uring, as Docker's profile does.
fn make_bundle(folder: &Folder) -> anyhow::Result<()> {
    for name in ["rootfs/bin", "rootfs/dev", "rootfs/proc"] {
        fs::create_dir_all(folder.file(name))?;
    }
    fs::copy(std::env::current_exe()?, folder.file("rootfs/bin/suite"))?;
    let path = folder.file("config.json");
    expect_status(&["crun", "spec", "--bundle", &folder.file("")], 0)?;
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/suite", "--nop-probe"]);
    // This kernel has no other namespaces, and not all file systems of a usual container.
    // The guest has no control group for containers.
    config["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let namespaces = ["mount", "pid", "network"].map(|kind| json!({"type": kind}));
    config["linux"]["namespaces"] = json!(namespaces);
    config["linux"]["resources"] = json!({});
    config["hostname"].take();
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
            "action": "SCMP_ACT_ERRNO",
            // Docker's is EPERM, which would look like a failure of crun.
            "errnoRet": libc::ENOSYS,
        }],
    });
    fs::write(&path, serde_json::to_string(&config)?)?;
    Ok(())
}

/// Checks that `ringfence bundle` lets the process of a container use what its policy
/// allows, and nothing else, with a runtime that knows nothing of it.
fn container_is_confined_by_its_bundle() -> TestResult {
    let folder = Folder::new()?;
    make_bundle(&folder)?;
    let [bundle, policy] = ["", "policy.json"].map(|name| folder.file(name));
    let name = format!("programs-{}", std::process::id());
    // The initial root file system cannot be exchanged.
    let mut crun = vec!["crun", "--cgroup-manager=disabled", "run", "--no-pivot"];
    crun.extend(["--bundle", &bundle, &name]);
    let said = expect_status(&crun, 1)?;
    ensure!(said.contains("io_uring_setup: -38 (ENOSYS)"), "{said}");
    for (op, status) in [(Op::NOP, 0), (Op::READ, libc::EACCES), (Op::NOP, 0)] {
        fs::write(&policy, Policy::allowing([op]).to_json())?;
        expect_status(&["ringfence", "bundle", "--policy", &policy, &bundle], 0)?;
        expect_status(&crun, status).with_context(|| format!("{op:?} is allowed"))?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a program whose runtime chooses io_uring by probing uses epoll if CONNECT
/// is denied.
///
/// In C, the probe reports CONNECT as supported, and the connection is refused.
fn program_that_probes_falls_back() -> TestResult {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?.to_string();
    let prober = ["prober", address.as_str()];
    let mut byte = [0];
    let said = expect_status(&prober, 0)?;
    expect_eq("free", said.as_str(), "io_uring: sent\n")?;
    server.accept()?.0.read_exact(&mut byte)?;

    let folder = Folder::new()?;
    let policy = folder.file("policy");
    let deny = json!({"defaultAction": "allow", "ops": ["IORING_OP_CONNECT"]});
    fs::write(&policy, deny.to_string())?;
    let (status, said) = confined(&policy, &prober)?;
    match implementation() {
        Implementation::C => {
            expect_eq("status", status, 1)?;
            ensure!(
                said.starts_with("io_uring: Permission denied"),
                "other words: {said}"
            );
        }
        Implementation::Rust => {
            expect_eq("status", (status, said.as_str()), (0, "epoll: sent\n"))?;
            server.accept()?.0.read_exact(&mut byte)?;
        }
    }
    Ok(Outcome::Passed)
}
