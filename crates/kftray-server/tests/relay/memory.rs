//! Memory beyond its limit: streams that nobody reads are given up, everybody else goes on. With the program itself, since
//! it is a process' memory that counts. That what was given up goes back to the system, so that opens are taken again, is the
//! allocator's doing: musl's in the image gives it back, the one of this build keeps some of it.

use std::time::Duration;

use kftray_relay_proto::record::Record;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{Client, tcp};
use crate::program::Program;

/// MiB. An idle relay takes less than half of it, also unoptimised.
const LIMIT: u64 = 24;

/// Each holds a record of 60 KiB in the relay once its window is full: far more than the limit.
const STREAMS: usize = 800;

/// More than a window and a record.
const BYTES: usize = 400_000;

/// Sends [`BYTES`] to each connection, or echoes.
async fn target(listener: TcpListener, echo: bool) {
    let mut connections = JoinSet::new();
    while let Ok((mut socket, _)) = listener.accept().await {
        connections.spawn(async move {
            if echo {
                let (mut from, mut to) = socket.split();
                tokio::io::copy(&mut from, &mut to).await.ok();
            } else if socket.write_all(&vec![1; BYTES]).await.is_ok() {
                // Until it is taken, or cut off.
                socket.shutdown().await.ok();
                while socket.read(&mut [0]).await.is_ok_and(|length| length > 0) {}
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_nobody_reads_are_given_up() {
    let relay = Program::start(&[("KFTRAY_LIMITS_MEMORY", &LIMIT.to_string())]).await;
    let mut targets = JoinSet::new();
    let [bulk, echo] =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let (bulk_at, echo_at) = (bulk.local_addr().unwrap(), echo.local_addr().unwrap());
    targets.spawn(target(bulk, false));
    targets.spawn(target(echo, true));
    let neighbour = Client::new(relay.tunnel).await;
    let mut lively = neighbour.opened(&tcp(echo_at)).await;

    let client = Client::new(relay.tunnel).await;
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        unread.push(client.open(&tcp(bulk_at), &[]).await);
    }
    let mut most = 0;
    for round in 0..20u8 {
        lively.data(&[round]).await;
        assert_eq!(lively.read(1).await, [round], "somebody who reads is left alone");
        most = most.max(relay.mib().await);
        sleep(Duration::from_millis(100)).await;
    }
    // What comes between two readings of the memory is on top.
    assert!(most < LIMIT + 16, "{most} MiB");

    let (mut whole, mut given_up, mut refused) = (0, 0, 0);
    for mut channel in unread {
        match channel.reply().await {
            Err(_) => refused += 1,
            Ok(_) => match channel.rest().await {
                (bytes, Some(end)) => {
                    assert_eq!((bytes.len(), end), (BYTES, Record::finished()));
                    whole += 1;
                }
                (_, None) => given_up += 1,
            },
        }
    }
    println!("{whole} whole, {given_up} given up, {refused} refused; {most} MiB");
    assert!(given_up > 0, "{whole} whole, {refused} refused");
}
