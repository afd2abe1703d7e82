//! `as`, `as-uid`, `as-groups` and `as-user-extra` of a kubeconfig user, as request headers
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>).

use http::{HeaderMap, HeaderName, HeaderValue};
use kftray_commons::{Code, Problem};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::config::Entry;

/// What a header name may not hold (RFC 9110, section 5.6.2), and `%` itself, as client-go's `headerKeyEscape` has it.
const KEY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}');

/// The headers, none if nobody is impersonated.
///
/// # Errors
/// [`Code::KubeconfigInvalid`] for values that cannot be sent.
pub(super) fn headers(entry: &Entry) -> Result<HeaderMap, Problem> {
    let user = &entry.user;
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, value: &str| -> Result<(), Problem> {
        let invalid =
            || Problem::new(Code::KubeconfigInvalid, format!("{name} cannot be sent: a line break in it?"));
        let value = HeaderValue::from_str(value).map_err(|_| invalid())?;
        headers.append(HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?, value);
        Ok(())
    };
    if let Some(name) = &user.impersonate {
        add("impersonate-user", name)?;
    }
    if let Some(uid) = &user.impersonate_uid {
        add("impersonate-uid", uid)?;
    }
    for group in user.impersonate_groups.iter().flatten() {
        add("impersonate-group", group)?;
    }
    for (key, values) in user.impersonate_user_extra.iter().flatten() {
        let name = format!("impersonate-extra-{}", utf8_percent_encode(&key.to_lowercase(), KEY));
        for value in values {
            add(&name.to_lowercase(), value)?;
        }
    }
    Ok(headers)
}
