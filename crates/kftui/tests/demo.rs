//! The demo, as the newcomer's first command: it deletes pods, fails no request, and leaves nothing behind.

mod common;

use common::kftui;

#[test]
fn no_request_fails_while_pods_are_deleted() {
    let temporary = tempfile::tempdir().expect("a directory");
    let mut demo = kftui(&["demo", "--seconds", "8"]);
    demo.command
        .env("TMPDIR", temporary.path())
        .env("HOME", "/nonexistent")
        .env("KUBECONFIG", "/nonexistent");
    let run = demo.run();
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stderr, "", "{run:?}");
    let last = run.stdout.lines().last().expect("a summary");
    let requests: u64 = last.split(' ').next().and_then(|count| count.parse().ok()).expect("a number first");
    // 60 a second are sent for 8 s; a busy machine may send fewer, but not next to none.
    assert!(requests >= 60, "{run:?}");
    assert!(last.contains(", 0 failed, while 2 pods were deleted."), "{run:?}");
    for name in ["front", "catalogue", "cart"] {
        assert!(run.stdout.contains(&format!("{name} is at http://localhost:")), "{run:?}");
    }
    assert_eq!(run.stdout.matches("deleted pod").count(), 2, "{run:?}");
    let left: Vec<_> = std::fs::read_dir(temporary.path()).expect("readable").collect();
    assert!(left.is_empty(), "{left:?}");
}
