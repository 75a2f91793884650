// SPDX-License-Identifier: GPL-2.0
//! prober ADDRESS: connects to a TCP server by monoio, sends a byte, and prints how it did
//! and what came of it. Like servers on this runtime, it uses io_uring if the probe of a
//! ring reports all opcodes that the runtime may use, and epoll otherwise.

use std::process::ExitCode;

use monoio::io::AsyncWriteRentExt;
use monoio::net::TcpStream;
use monoio::utils::detect_uring;
use monoio::{FusionDriver, RuntimeBuilder};

fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1) else {
        eprintln!("error: no address given; give one such as 127.0.0.1:80");
        return ExitCode::from(2);
    };
    let driver = if detect_uring() { "io_uring" } else { "epoll" };
    let sent = RuntimeBuilder::<FusionDriver>::new()
        .build()
        .and_then(|mut runtime| {
            runtime.block_on(async {
                let mut stream = TcpStream::connect(address).await?;
                stream.write_all(b"!").await.0
            })
        });
    match sent {
        Ok(_) => {
            println!("{driver}: sent");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{driver}: {error}");
            ExitCode::FAILURE
        }
    }
}
