//! Programs of this machine that others reach: who may call, and who does.

use serde::{Deserialize, Serialize};

use super::Millis;
use crate::problem::Problem;
use crate::spec::Expose;

/// What an expose has beside what every forward has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Exposed {
    /// Callers from outside the cluster reach it.
    pub public: bool,
    /// Neither credentials nor addresses are asked for: whoever reaches it is let in.
    pub open: bool,
    /// Who called.
    pub calls: Calls,
}

/// The calls of an expose since its start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Calls {
    /// How many there were.
    pub total: u64,
    /// The last of them, newest first, at most [`Calls::KEPT`].
    pub last: Vec<Call>,
}

/// A request of a caller; of what is not HTTP/1 a whole connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Call {
    /// When it was answered, or had failed.
    pub at: Millis,
    /// The caller's address: behind an Ingress controller the one that it tells.
    pub caller: String,
    /// Method and path, as in `POST /hook`; the query is left out, it may hold secrets. None for what is not HTTP/1, and for
    /// callers who were turned away.
    #[serde(default)]
    pub request: Option<String>,
    /// Status of the answer, if there was one that is HTTP/1.
    #[serde(default)]
    pub status: Option<u16>,
    /// From the request's head to the head of the answer; of a connection that is not HTTP, from its begin to its end.
    #[serde(default)]
    pub took_us: u64,
    /// Why it failed, if it did.
    #[serde(default)]
    pub problem: Option<Problem>,
}

impl Exposed {
    /// Of one that nobody has called yet.
    #[must_use]
    pub fn of(expose: &Expose) -> Self {
        Self { public: expose.is_public(), open: expose.access.is_open(), calls: Calls::default() }
    }

    /// Who may call, in plain words.
    #[must_use]
    pub fn reach(&self) -> &'static str {
        match (self.public, self.open) {
            (true, true) => "PUBLIC: anybody on the internet may call it",
            (true, false) => "PUBLIC: reached from the internet, callers are checked",
            (false, true) => "whoever is inside the cluster may call it",
            (false, false) => "reached from inside the cluster, callers are checked",
        }
    }
}

impl Calls {
    /// Most calls that are kept: what a window shows of them.
    pub const KEPT: usize = 20;

    /// Notes a call. A failure that is followed by the answer by which the caller was told of it is one call.
    pub fn note(&mut self, mut call: Call) {
        call.caller = cut(&call.caller);
        call.request = call.request.as_deref().map(cut);
        if let Some(before) = self.last.first_mut().filter(|before| before.is_answered_by(&call)) {
            call.problem = before.problem.take();
            *before = call;
            return;
        }
        self.total += 1;
        self.last.truncate(Self::KEPT - 1);
        self.last.insert(0, call);
    }
}

/// Longest caller and request, in characters; a caller chooses both.
const TEXT: usize = 200;

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

impl Call {
    fn is_answered_by(&self, answer: &Self) -> bool {
        self.problem.is_some()
            && self.status.is_none()
            && self.caller == answer.caller
            && answer.problem.is_none()
            // Programs that are down are answered for by a gateway's error.
            && answer.status == Some(502)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Code;

    fn call(caller: &str, status: Option<u16>, problem: bool) -> Call {
        Call {
            at: 1,
            caller: caller.to_owned(),
            request: status.map(|status| format!("GET /{status}")),
            status,
            took_us: 1,
            problem: problem.then(|| Problem::new(Code::LocalProgramDown, "down")),
        }
    }

    #[test]
    fn the_last_are_kept_newest_first() {
        let mut calls = Calls::default();
        for number in 0..50 {
            calls.note(call(&number.to_string(), Some(200), false));
        }
        assert_eq!((calls.total, calls.last.len()), (50, Calls::KEPT));
        assert_eq!(calls.last.first().map(|call| call.caller.as_str()), Some("49"));
        assert_eq!(calls.last.last().map(|call| call.caller.as_str()), Some("30"));
        calls.note(call(&"x".repeat(5_000), None, true));
        assert_eq!(calls.last[0].caller.len(), TEXT);
    }

    #[test]
    fn a_failure_and_its_answer_are_one_call() {
        let mut calls = Calls::default();
        calls.note(call("a", None, true));
        calls.note(call("a", Some(502), false));
        assert_eq!((calls.total, calls.last[0].status), (1, Some(502)));
        assert!(calls.last[0].problem.is_some());
        calls.note(call("a", Some(502), false));
        calls.note(call("b", None, true));
        calls.note(call("c", Some(502), false));
        calls.note(call("c", Some(200), false));
        assert_eq!(calls.total, 5, "what belongs to nothing before is a call of its own");
    }
}
