//! Clients of the shop: a new connection for every request, at a fixed rate whatever the answers do, and every answer
//! checked to its last byte.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Longer than a forward holds a connection: a request that takes this long counts as failed.
const PATIENCE: Duration = Duration::from_secs(40);

/// Latencies that the median is taken from: the last few seconds at the usual rate.
const RECENT: usize = 128;

/// Answers are pages of a few kilobytes; one that grows beyond this is none of ours.
const ANSWER_MAX: usize = 1024 * 1024;

/// What the requests to one Service have come to.
#[derive(Debug, Default)]
pub(super) struct Score {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sent: u64,
    ok: u64,
    failed: u64,
    recent: VecDeque<Duration>,
    slowest: Duration,
    last_failure: Option<String>,
}

/// A [`Score`] at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Scored {
    pub(super) ok: u64,
    pub(super) failed: u64,
    /// Sent and not yet answered.
    pub(super) waiting: u64,
    /// Median of the last answers.
    pub(super) usual: Duration,
    /// Slowest of all.
    pub(super) slowest: Duration,
    pub(super) last_failure: Option<String>,
}

impl Score {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Plain numbers: a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) {
        self.lock().sent += 1;
    }

    fn answered(&self, result: Result<(), String>, took: Duration) {
        let mut inner = self.lock();
        match result {
            Ok(()) => inner.ok += 1,
            Err(why) => {
                inner.failed += 1;
                inner.last_failure = Some(why);
            }
        }
        inner.slowest = inner.slowest.max(took);
        if inner.recent.len() == RECENT {
            inner.recent.pop_front();
        }
        inner.recent.push_back(took);
    }

    pub(super) fn read(&self) -> Scored {
        let inner = self.lock();
        let mut sorted: Vec<Duration> = inner.recent.iter().copied().collect();
        sorted.sort_unstable();
        Scored {
            ok: inner.ok,
            failed: inner.failed,
            waiting: inner.sent.saturating_sub(inner.ok + inner.failed),
            usual: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
            slowest: inner.slowest,
            last_failure: inner.last_failure.clone(),
        }
    }
}

/// Sends `rate` requests a second until `stop` is cancelled, then waits for the answers that are still out.
pub(super) async fn run(
    address: SocketAddr,
    proof: &'static str,
    rate: u32,
    score: Arc<Score>,
    stop: tokio_util::sync::CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {
                let score = Arc::clone(&score);
                score.sent();
                requests.spawn(async move {
                    let begun = Instant::now();
                    let result = match tokio::time::timeout(PATIENCE, request(address, proof)).await {
                        Ok(result) => result,
                        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                    };
                    score.answered(result, begun.elapsed());
                });
            }
            Some(_) = requests.join_next() => {}
        }
    }
    while requests.join_next().await.is_some() {}
}

/// One request on a connection of its own. The answer's length is counted, not its end waited for.
async fn request(address: SocketAddr, proof: &str) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(told)?;
    stream.set_nodelay(true).map_err(told)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await.map_err(told)?;
    let mut answer = Vec::with_capacity(8 * 1024);
    loop {
        if let Some(whole) = complete(&answer)? {
            let body = std::str::from_utf8(whole).map_err(|_| "an answer that is no text")?;
            return if body.contains(proof) { Ok(()) } else { Err("a wrong answer".to_owned()) };
        }
        if answer.len() > ANSWER_MAX {
            return Err("an answer without end".to_owned());
        }
        if stream.read_buf(&mut answer).await.map_err(told)? == 0 {
            return Err("the connection ended in the middle of an answer".to_owned());
        }
    }
}

/// The body, once all of it is there.
fn complete(answer: &[u8]) -> Result<Option<&[u8]>, String> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END_OF_HEAD.len()).position(|four| four == END_OF_HEAD) else {
        return Ok(None);
    };
    let (head, rest) = answer.split_at(end);
    let head = std::str::from_utf8(head).map_err(|_| "a head that is no text")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(format!("answered {status}"));
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.ok_or("an answer without length")?;
    let body = rest.get(END_OF_HEAD.len()..).unwrap_or_default();
    Ok((body.len() >= length).then(|| body.get(..length).unwrap_or(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(complete(b"HTTP/1.1 200 OK\r\n"), Ok(None));
        assert_eq!(complete(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"), Ok(None));
        assert_eq!(complete(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"), Ok(Some(&b"ab"[..])));
        assert!(complete(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(complete(b"HTTP/1.1 200 OK\r\n\r\nab").is_err());
    }

    #[tokio::test]
    async fn failures_are_counted() {
        // A port that was free a moment ago refuses.
        let closed =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let score = Arc::new(Score::default());
        let stop = tokio_util::sync::CancellationToken::new();
        let load = run(closed, "x", 200, Arc::clone(&score), stop.clone());
        let end = async {
            while score.read().failed == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stop.cancel();
        };
        tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(load, end) }).await.expect("ends");
        let scored = score.read();
        assert_eq!((scored.ok, scored.waiting), (0, 0));
        assert!(scored.failed > 0 && scored.last_failure.is_some());
    }
}
