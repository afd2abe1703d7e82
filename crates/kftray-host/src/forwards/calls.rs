//! The calls of an expose, between the task that hears of each and the one that tells them on a few times a second: a busy
//! page must not fill the stream of every client.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kftray_commons::Problem;
use kftray_commons::api::{Call, Calls};
use kftray_portforward::Call as Answered;

use crate::clock;

/// What was heard of the callers of one expose.
#[derive(Debug, Default)]
pub(super) struct CallLog(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    calls: Calls,
    /// Something has come since it was told last.
    news: bool,
}

impl CallLog {
    /// A call has been answered, or its connection has ended.
    pub(super) fn called(&self, answered: Answered) {
        let Answered { caller, request, status, took } = answered;
        let request = request.map(|(method, path)| format!("{method} {path}"));
        let took_us = micros(took);
        self.note(Call { at: clock::now(), caller, request, status, took_us, problem: None });
    }

    /// A caller could not be served.
    pub(super) fn failed(&self, caller: String, problem: Problem) {
        let problem = Some(problem);
        self.note(Call { at: clock::now(), caller, request: None, status: None, took_us: 0, problem });
    }

    /// All that is known.
    pub(super) fn all(&self) -> Calls {
        self.heard().calls.clone()
    }

    /// The same if it has changed since this was asked last.
    pub(super) fn news(&self) -> Option<Calls> {
        let mut heard = self.heard();
        std::mem::take(&mut heard.news).then(|| heard.calls.clone())
    }

    fn note(&self, call: Call) {
        let mut heard = self.heard();
        heard.calls.note(call);
        heard.news = true;
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More than half a million years do not fit; none lasts as long.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_told_once() {
        let log = CallLog::default();
        assert_eq!(log.news(), None);
        let took = Duration::from_millis(3);
        let request = Some(("GET".to_owned(), "/a".to_owned()));
        log.called(Answered { caller: "10.0.0.1:5".to_owned(), request, status: Some(204), took });
        let told = log.news().expect("news");
        let call = &told.last[0];
        assert_eq!((told.total, call.request.as_deref(), call.status), (1, Some("GET /a"), Some(204)));
        assert_eq!(call.took_us, 3_000);
        assert_eq!(log.news(), None);
        assert_eq!(log.all(), told);
    }
}
