//! Who may call an exposed program, decided before the program hears of it.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kftray_commons::Access;
use kftray_commons::spec::Exposure;
use subtle::ConstantTimeEq as _;

use super::head::Request;
use super::page::{Host, Reason};
use crate::ports::Offer;
use crate::reverse::local;

/// What holds for all callers of an expose.
#[derive(Debug)]
pub(in crate::reverse) struct Rules {
    pub(super) access: Access,
    /// Callers come through an Ingress controller, which says who they are.
    pub(super) behind_proxy: bool,
    /// The scheme that callers use as far as nobody says otherwise.
    pub(super) proto: &'static str,
    pub(super) host: Host,
}

impl Rules {
    pub(in crate::reverse) fn of(offer: &Offer) -> Self {
        let expose = &offer.expose;
        let (behind_proxy, proto) = match &expose.exposure {
            Exposure::Internal { .. } => (false, "http"),
            Exposure::Public { certificate: Some(_), .. } => (true, "https"),
            Exposure::Public { certificate: None, .. } => (true, "http"),
        };
        let program = local::address(expose);
        Self {
            access: expose.access.clone(),
            behind_proxy,
            proto,
            host: Host { name: offer.name.clone(), program },
        }
    }

    /// Whether a connection may be passed on whose requests nobody can look at.
    pub(super) fn allow_unseen(&self, peer: Option<IpAddr>) -> bool {
        if self.access.wants_credentials() {
            return false;
        }
        // The peer of a public caller is the Ingress controller.
        self.access.allow.is_empty()
            || (!self.behind_proxy && peer.is_some_and(|peer| self.access.allows(peer)))
    }

    /// Whether a request may be passed on.
    pub(super) fn judge(&self, caller: Option<IpAddr>, request: &Request) -> Result<(), Reason> {
        // The peer of a public caller is the Ingress controller: unless that says who calls, nobody knows.
        let is_told = !self.behind_proxy || request.forwarded_for.is_some();
        let known = is_told && caller.is_some_and(|caller| self.access.allows(caller));
        if !known && !self.access.allow.is_empty() {
            return Err(Reason::Forbidden);
        }
        if self.access.wants_credentials() && !self.knows(request.authorization.as_deref()) {
            return Err(Reason::Unauthorized);
        }
        Ok(())
    }

    fn knows(&self, credentials: Option<&[u8]>) -> bool {
        let Some(text) = credentials.and_then(|value| std::str::from_utf8(value).ok()) else { return false };
        let Some((scheme, value)) = text.trim().split_once(' ') else { return false };
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let Ok(given) = STANDARD.decode(value) else { return false };
            return self.access.basic.as_ref().is_some_and(|wanted| same(&given, wanted.reveal().as_bytes()));
        }
        scheme.eq_ignore_ascii_case("bearer")
            && self
                .access
                .bearer
                .as_ref()
                .is_some_and(|wanted| same(value.as_bytes(), wanted.reveal().as_bytes()))
    }
}

/// Compares without telling by its time where two secrets differ.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    given.ct_eq(wanted).into()
}
