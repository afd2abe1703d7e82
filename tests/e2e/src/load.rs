//! Many clients at once, and what became of each.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client;

/// What became of a series of requests.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Time from connect to the whole answer, in the order in which the requests ended.
    pub latencies: Vec<Duration>,
    /// What the failed ones said.
    pub failures: Vec<String>,
}

impl Outcome {
    /// The latency that `percent` of the requests did not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * percent / 100).copied().unwrap_or_default()
    }
}

/// Opens `total` connections, `rate` a second whatever the answers do, one GET on each, every answer within `limit`.
pub async fn requests_at(port: u16, path: &str, rate: u32, total: u32, limit: Duration) -> Outcome {
    let mut clock = tokio::time::interval(Duration::from_secs(1) / rate);
    // A late tick is made up for at once: the number of requests is what matters.
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    let begun = Instant::now();
    for number in 0..total {
        clock.tick().await;
        let path = path.to_owned();
        running.spawn(async move {
            let opened = Instant::now();
            let answer = client::get(port, &path, limit).await;
            let place = format!("request {number}, {:.1} s after the start", (opened - begun).as_secs_f32());
            answer.map(|_| opened.elapsed()).map_err(|error| format!("{place}: {error:#}"))
        });
    }
    collect(running).await
}

/// Runs `count` requests, `parallel` at a time.
pub async fn requests(port: u16, path: &str, parallel: usize, count: usize, limit: Duration) -> Outcome {
    let mut running = JoinSet::new();
    let mut outcome = Outcome::default();
    for _ in 0..count {
        if running.len() >= parallel
            && let Some(joined) = running.join_next().await
        {
            outcome.add(joined);
        }
        let path = path.to_owned();
        running.spawn(async move {
            let opened = Instant::now();
            client::get(port, &path, limit)
                .await
                .map(|_| opened.elapsed())
                .map_err(|error| format!("{error:#}"))
        });
    }
    while let Some(joined) = running.join_next().await {
        outcome.add(joined);
    }
    outcome
}

async fn collect(mut running: JoinSet<Result<Duration, String>>) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(joined) = running.join_next().await {
        outcome.add(joined);
    }
    outcome
}

impl Outcome {
    fn add(&mut self, joined: Result<Result<Duration, String>, tokio::task::JoinError>) {
        match joined {
            Ok(Ok(latency)) => self.latencies.push(latency),
            Ok(Err(failure)) => self.failures.push(failure),
            Err(panic) => self.failures.push(panic.to_string()),
        }
    }
}
