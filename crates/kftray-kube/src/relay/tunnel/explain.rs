//! What the relay says, in the one shape in which failures reach a person. Pure.

use kftray_commons::{Code, Problem};
use kftray_relay_proto::handshake::HandshakeError;
use kftray_relay_proto::reason::{EndKind, Refusal, RefusalKind};

/// The relay did not open a connection or flow to `target`.
pub(super) fn refusal(target: &str, refusal: &Refusal) -> Problem {
    let said = &refusal.message;
    match refusal.kind {
        RefusalKind::Denied => {
            Problem::new(Code::RelayDenied, told(format!("the relay may not connect to {target}"), said))
        }
        RefusalKind::NameNotFound => {
            Problem::new(Code::HostNotFound, told(format!("the cluster knows no host {target}"), said))
        }
        RefusalKind::Refused => {
            Problem::new(Code::RemoteRefused, told(format!("nothing listens on {target}"), said)).with_remedy(
                "Check that the program runs and listens on that port, not only on its loopback.",
            )
        }
        RefusalKind::TimedOut => {
            Problem::new(Code::HostTimedOut, told(format!("{target} did not answer the relay in time"), said))
        }
        RefusalKind::Unreachable => Problem::new(
            Code::DestinationUnreachable,
            told(format!("no way leads from the relay to {target}"), said),
        ),
        RefusalKind::TooLarge => {
            Problem::new(Code::SpecInvalid, told(format!("{target} is more than the relay takes"), said))
        }
        RefusalKind::Busy => {
            Problem::new(Code::Overloaded, told(format!("the relay is too busy for {target}"), said))
        }
        RefusalKind::Draining => {
            Problem::new(Code::ConnectionLost, told("the relay is going away".to_owned(), said))
        }
        RefusalKind::Unauthorized
        | RefusalKind::Version
        | RefusalKind::Unsupported
        | RefusalKind::Invalid => {
            Problem::new(Code::RelayRefused, told(format!("the relay refuses to serve {target}"), said))
        }
        RefusalKind::Taken => {
            Problem::new(Code::NameTaken, told("somebody else listens there already".to_owned(), said))
        }
        RefusalKind::Internal | RefusalKind::Unknown(_) | _ => {
            Problem::new(Code::ConnectionLost, told(format!("the relay could not connect to {target}"), said))
        }
    }
}

/// A connection or flow to `target` that was open has broken.
pub(super) fn broken(target: &str, kind: EndKind, said: &str) -> Problem {
    match kind {
        EndKind::Refused => {
            Problem::new(Code::RemoteRefused, told(format!("nothing listens on {target}"), said)).with_remedy(
                "Check that the program runs and listens on that port, not only on its loopback.",
            )
        }
        EndKind::Unreachable => Problem::new(
            Code::DestinationUnreachable,
            told(format!("no way leads from the relay to {target}"), said),
        ),
        EndKind::TimedOut => {
            Problem::new(Code::HostTimedOut, told(format!("the connection to {target} timed out"), said))
        }
        EndKind::TooLarge => Problem::new(
            Code::SpecInvalid,
            told(format!("a datagram is too large for the way to {target}"), said),
        )
        .with_remedy("Send smaller datagrams."),
        EndKind::Draining => {
            Problem::new(Code::ConnectionLost, told("the relay is going away".to_owned(), said))
        }
        EndKind::Finished
        | EndKind::Reset
        | EndKind::Idle
        | EndKind::TakenOver
        | EndKind::Internal
        | EndKind::Unknown(_)
        | _ => Problem::new(Code::ConnectionLost, told(format!("{target} has reset the connection"), said)),
    }
}

/// There is no tunnel to the relay `name`.
pub(super) fn handshake(name: &str, error: &HandshakeError) -> Problem {
    match error {
        HandshakeError::Refused { refusal, .. }
            if matches!(refusal.kind, RefusalKind::Busy | RefusalKind::Draining) =>
        {
            Problem::new(
                Code::ConnectionLost,
                told(format!("relay {name} takes no further tunnel now"), &refusal.message),
            )
        }
        HandshakeError::Refused { refusal, .. } => Problem::new(
            Code::RelayRefused,
            told(format!("relay {name} does not let this program in"), &refusal.message),
        ),
        HandshakeError::Wire(error) => Problem::new(
            Code::RelayRefused,
            format!("what answers on the tunnel port of {name} is no relay: {error}"),
        ),
        error @ (HandshakeError::NotOffered(_) | _) => {
            Problem::new(Code::RelayRefused, format!("relay {name}: {error}"))
        }
    }
}

/// The stream has ended without the record that ends it.
pub(super) fn cut_off(target: &str) -> Problem {
    Problem::new(Code::ConnectionLost, format!("the connection to {target} by the relay was cut off"))
}

fn told(what: String, said: &str) -> String {
    if said.is_empty() { what } else { format!("{what}: {said}") }
}

#[cfg(test)]
mod tests {
    use kftray_commons::Cure;

    use super::*;

    #[test]
    fn every_refusal_names_the_target_and_what_the_relay_said() {
        for code in 1..=20 {
            let kind = RefusalKind::from_code(code);
            let problem = refusal("db.shop:5432", &Refusal::new(kind, "the reason"));
            assert!(problem.message.contains("the reason"), "{problem:?}");
            if !matches!(kind, RefusalKind::Draining | RefusalKind::Taken) {
                assert!(problem.message.contains("db.shop:5432"), "{problem:?}");
            }
            assert!(!problem.remedy.is_empty());
        }
        assert_eq!(
            refusal("h:1", &Refusal::new(RefusalKind::Denied, "")).message,
            "the relay may not connect to h:1"
        );
    }

    /// A connection that can never be is refused at once; one that may come later waits with the engine.
    #[test]
    fn what_only_a_person_can_cure_is_not_tried_again() {
        let cure = |kind| refusal("h:1", &Refusal::new(kind, "")).code.cure();
        for kind in [
            RefusalKind::Denied,
            RefusalKind::NameNotFound,
            RefusalKind::TimedOut,
            RefusalKind::Unreachable,
            RefusalKind::TooLarge,
        ] {
            assert_eq!(cure(kind), Cure::User, "{kind}");
        }
        for kind in [RefusalKind::Refused, RefusalKind::Busy, RefusalKind::Draining, RefusalKind::Internal] {
            assert_eq!(cure(kind), Cure::Retry, "{kind}");
        }
    }
}
