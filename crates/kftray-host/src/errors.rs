//! `docs/errors.md`: every code with cause and cure, from the table that the program itself uses.

use kftray_commons::api::status_of;
use kftray_commons::{Code, Cure};

/// The document.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(
        "# Errors\n\n\
        Every failure that kftray shows has a code, a sentence about the case, and a remedy. The same codes come from the\n\
        API (`{code, message, remedy, details}`), from `--output json`, and in the terminal. A code never changes its\n\
        meaning; a program may rely on it. Written by `UPDATE=1 cargo test -p kftray-host --test documents`.\n\n\
        What happens by itself: **retries** - tried again with growing pauses; **waits** - until the cluster changes;\n\
        **needs you** - nothing changes before somebody does something.\n\n\
        | code | cause | cure | by itself | HTTP |\n|---|---|---|---|---|\n",
    );
    for code in Code::ALL {
        let by_itself = match code.cure() {
            Cure::Retry => "retries",
            Cure::Wait => "waits",
            Cure::User => "needs you",
        };
        let (cause, remedy) = (escaped(code.cause()), escaped(code.remedy()));
        let status = status_of(*code);
        text.push_str(&format!("| `{code}` | {cause} | {remedy} | {by_itself} | {status} |\n"));
    }
    text
}

/// A bar would end the cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
