//! Keeps secrets out of what people are shown of other programs' output.

/// `text` with everything that may be a token replaced by `***`: unbroken runs of 32 or more letters, digits and `-_.=+`
/// that hold a digit (tokens, keys, signed URLs' parameters; paths and prose survive).
pub(crate) fn redact(text: &str) -> String {
    const LONGEST_HARMLESS: usize = 31;
    let part = |c: char| c.is_ascii_alphanumeric() || "-_.=+".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let run = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(run);
        if word.len() > LONGEST_HARMLESS && word.bytes().any(|byte| byte.is_ascii_digit()) {
            out.push_str("***");
        } else {
            out.push_str(word);
        }
        let next = tail.find(part).unwrap_or(tail.len());
        out.push_str(&tail[..next]);
        rest = &tail[next..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_prose_and_paths_stay() {
        let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEyMyJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl";
        assert_eq!(redact(&format!("got {token}, sorry")), "got ***, sorry");
        let prose = "/usr/lib/google-cloud-sdk/bin/gke-gcloud-auth-plugin: exit status 1 (2026-11-21)";
        assert_eq!(redact(prose), prose);
        assert_eq!(redact(""), "");
        assert_eq!(redact("käse \u{1F9C0}"), "käse \u{1F9C0}");
    }
}
