// SPDX-License-Identifier: GPL-2.0
//! The scene of the demonstration in which `ringfence` confines programs that nobody here
//! wrote.

use std::fs;
use std::net::TcpListener;

use ringfence::names::Op;
use ringfence::policy::Policy;

use io_uring_rs_tests::kernel::{Implementation, implementation};
use io_uring_rs_tests::programs::{SERVER, confined, learn, write_without};

use super::Story;

/// Confines Node.js, and a program that chooses io_uring or epoll by probing.
pub fn tell(story: &mut Story) -> anyhow::Result<()> {
    story.scene("Node.js, with its io_uring, serves a page in a fence that has learned from it.");
    fs::write("server.js", SERVER)?;
    fs::write("page", "a page\n")?;
    let node = ["node", "server.js", "page"];
    let policy = learn("node.json", &node)?;
    let learned: Vec<String> = policy.ops.iter().map(|op| op.short()).collect();
    let learned = learned.join(", ");
    println!("    ringfence learn -o node.json -- node server.js page    learned: {learned}");

    let run = "ringfence run --policy node.json -- node";
    let got = confined("node.json", &node)?;
    let right = got == (0, "a page\n".to_string());
    let result = if right {
        "serves the page"
    } else {
        "does not serve"
    };
    story.line(run, "what was learned", result, right);
    write_without("node.json", &policy, Op::EPOLL_CTL)?;
    let (status, _) = confined("node.json", &node)?;
    let right = status == -libc::SIGABRT;
    let result = if right { "aborts" } else { "does not abort" };
    story.line(run, "that without EPOLL_CTL", result, right);

    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?.to_string();
    let mut deny = Policy::allowing([Op::CONNECT]);
    deny.default_action = ringfence::policy::Action::Allow;
    fs::write("no-connect.json", deny.to_json())?;
    let (_, said) = confined("no-connect.json", &["prober", &address])?;
    let right = match implementation() {
        Implementation::C => said.starts_with("io_uring: Permission denied"),
        Implementation::Rust => said == "epoll: sent\n",
    };
    let asked = "a program on monoio, which probes, connects";
    story.line(asked, "CONNECT: deny", said.trim(), right);
    Ok(())
}
