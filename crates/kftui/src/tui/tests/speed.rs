//! 5,000 forwards, 500 of them active: a key press is taken in and drawn within 50 ms in a release build. Here, in whatever
//! build on whatever machine, it is printed and held to a loose bound.

use std::sync::Arc;

use kftray_commons::Status;
use kftray_commons::api::Snapshot;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use tokio::time::Instant;

use super::super::view::view;
use super::script::{Desk, config, state};

/// Loose: an unoptimised build on a busy machine.
const BOUND_MS: u128 = 1000;

fn many() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..5000 {
        let context = format!("cluster-{}", number % 25);
        let config = config(number, Some(&context), "default", &format!("service-{number}"), 10_000);
        if number % 10 == 0 {
            snapshot.forwards.push(Arc::new(state(&config, Status::Ready)));
        }
        snapshot.configs.push(config);
    }
    snapshot
}

#[test]
fn a_key_press_among_thousands() {
    let mut desk = Desk::new(200, 60);
    desk.say(|snapshot| *snapshot = many());
    let mut terminal = Terminal::new(TestBackend::new(200, 60)).expect("a terminal");
    let mut worst = 0;
    for (what, keys) in [
        ("down", "<down>"),
        ("search", "/"),
        ("letter", "9"),
        ("letter", "1"),
        ("clear", "<esc>"),
        ("tick all", "a"),
        ("last", "G"),
    ] {
        let begun = Instant::now();
        desk.press(keys);
        terminal.draw(|frame| drop(view(&desk.model, frame))).expect("drawn");
        let took = begun.elapsed();
        println!("5,000 forwards, {what}: {:.2} ms", took.as_secs_f64() * 1000.0);
        worst = worst.max(took.as_millis());
    }
    // A tenth of the forwards say something at once.
    let begun = Instant::now();
    desk.say(|snapshot| {
        for forward in &mut snapshot.forwards {
            Arc::make_mut(forward).counters.bytes_down += 1000;
        }
    });
    terminal.draw(|frame| drop(view(&desk.model, frame))).expect("drawn");
    println!("5,000 forwards, counters of 500: {:.2} ms", begun.elapsed().as_secs_f64() * 1000.0);
    worst = worst.max(begun.elapsed().as_millis());
    assert!(worst < BOUND_MS, "{worst} ms");
}
