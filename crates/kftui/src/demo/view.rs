//! What the demo shows: a table that stays in place on a terminal, a line a second elsewhere.

use std::io::{self, Write as _};
use std::time::Duration;

use super::load::Scored;
use crate::render::Paint;

/// Events that stay visible under the table.
const EVENTS: usize = 6;

/// One Service at one moment.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) url: String,
    /// One entry per pod that is not yet gone: ready, or not.
    pub(super) pods: Vec<bool>,
    pub(super) scored: Scored,
    /// Answers in the last second.
    pub(super) per_second: u64,
}

/// The whole demo at one moment.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) rows: Vec<Row>,
    pub(super) deleted: u64,
    pub(super) running: Duration,
    /// What is left, if it ends by itself.
    pub(super) left: Option<Duration>,
}

impl Scene {
    pub(super) fn ok(&self) -> u64 {
        self.rows.iter().map(|row| row.scored.ok).sum()
    }

    pub(super) fn failed(&self) -> u64 {
        self.rows.iter().map(|row| row.scored.failed).sum()
    }

    fn waiting(&self) -> u64 {
        self.rows.iter().map(|row| row.scored.waiting).sum()
    }
}

/// Where it is shown.
pub(super) enum View {
    Live(Live),
    Plain,
}

impl View {
    pub(super) fn new(live: bool, paint: Paint) -> Self {
        if live { Self::Live(Live { paint, told: Vec::new(), drawn: 0 }) } else { Self::Plain }
    }

    /// Shows a moment; `second`: a full second has passed.
    pub(super) fn show(&mut self, scene: &Scene, second: bool) -> io::Result<()> {
        match self {
            Self::Live(live) => print(&live.picture(scene)),
            Self::Plain if second => print(&plain_line(scene)),
            Self::Plain => Ok(()),
        }
    }

    /// Tells what was just done to the cluster.
    pub(super) fn event(&mut self, clock: &str, text: &str) -> io::Result<()> {
        match self {
            Self::Live(live) => {
                live.event(clock, text);
                Ok(())
            }
            Self::Plain => print(&format!("{clock} {text}\n")),
        }
    }

    /// Shows the last moment, leaves it standing, and prints the sum.
    pub(super) fn finish(mut self, scene: &Scene, paint: Paint) -> io::Result<()> {
        self.show(scene, false)?;
        print(&summary(scene, paint))
    }
}

/// Prints, and says so if nobody reads.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The table, drawn over itself.
pub(super) struct Live {
    paint: Paint,
    /// Newest first.
    told: Vec<String>,
    /// Lines of the last picture, for the way back up.
    drawn: usize,
}

/// Control sequences (ECMA-48): the cursor up some lines and to the first column, the rest of the line and of the screen
/// erased, and long lines cut instead of wrapped while the picture is drawn.
mod control {
    pub(super) fn up(lines: usize) -> String {
        if lines == 0 { String::new() } else { format!("\u{1b}[{lines}A") }
    }

    pub(super) const END_OF_LINE: &str = "\u{1b}[K\n";
    pub(super) const END_OF_SCREEN: &str = "\u{1b}[J";
    pub(super) const CUT: &str = "\u{1b}[?7l";
    pub(super) const WRAP: &str = "\u{1b}[?7h";
}

impl Live {
    fn picture(&mut self, scene: &Scene) -> String {
        let lines = self.lines(scene);
        // From the first column, whatever was typed or echoed meanwhile.
        let mut picture = format!("\r{}", control::up(std::mem::replace(&mut self.drawn, lines.len())));
        picture.push_str(control::CUT);
        for line in &lines {
            picture.push_str(line);
            picture.push_str(control::END_OF_LINE);
        }
        picture.push_str(control::WRAP);
        picture.push_str(control::END_OF_SCREEN);
        picture
    }

    fn lines(&self, scene: &Scene) -> Vec<String> {
        let head = format!(
            "  {:<11}{:<25}{:<10}{:>7}{:>9}{:>8}{:>10}{:>10}",
            "SERVICE", "ADDRESS", "PODS", "REQ/S", "OK", "FAILED", "USUAL", "SLOWEST"
        );
        let left = match scene.left {
            Some(left) => format!("{} s left.", left.as_secs()),
            None => "Open the addresses in a browser. Ctrl-C ends.".to_owned(),
        };
        let mut lines = vec![String::new(), self.paint.dim(head)];
        lines.extend(scene.rows.iter().map(|row| table_row(row, self.paint)));
        lines.push(String::new());
        lines.push(format!("  {}", headline(scene, self.paint)));
        lines.push(format!("  {}", self.paint.dim(left)));
        lines.push(String::new());
        lines.extend(self.told.iter().cloned());
        lines
    }

    fn event(&mut self, clock: &str, text: &str) {
        self.told.insert(0, format!("  {} {text}", self.paint.dim(clock)));
        self.told.truncate(EVENTS);
    }
}

fn table_row(row: &Row, paint: Paint) -> String {
    /// Columns of the pods; more than the demo ever has at once.
    const PODS: usize = 10;
    let dots: String =
        row.pods.iter().map(|ready| if *ready { paint.good("●") } else { paint.busy("○") }).collect();
    let gap = " ".repeat(PODS.saturating_sub(row.pods.len()));
    let failed = format!("{:>8}", row.scored.failed);
    let failed = if row.scored.failed == 0 { failed } else { paint.bad(failed) };
    format!(
        "  {}{:<25}{dots}{gap}{:>7}{:>9}{failed}{:>10}{:>10}",
        paint.strong(format!("{:<11}", row.name)),
        row.url,
        row.per_second,
        row.scored.ok,
        milliseconds(row.scored.usual),
        milliseconds(row.scored.slowest),
    )
}

fn headline(scene: &Scene, paint: Paint) -> String {
    let failed = format!("{} failed", scene.failed());
    let failed = if scene.failed() == 0 { paint.good(failed) } else { paint.bad(failed) };
    let waiting = match scene.waiting() {
        0 => String::new(),
        count => format!(" ({count} waiting for a pod)"),
    };
    let deleted = match scene.deleted {
        1 => "1 pod was deleted".to_owned(),
        count => format!("{count} pods were deleted"),
    };
    format!("{} requests, {failed}, while {deleted}.{waiting}", scene.ok() + scene.failed())
}

fn plain_line(scene: &Scene) -> String {
    let each = scene.rows.iter().map(|row| {
        let ready = row.pods.iter().filter(|ready| **ready).count();
        format!("{} {}/s {} ready {}", row.name, row.per_second, ready, milliseconds(row.scored.usual))
    });
    format!(
        "{:>4} s  ok {}  failed {}  waiting {}  |  {}\n",
        scene.running.as_secs(),
        scene.ok(),
        scene.failed(),
        scene.waiting(),
        each.collect::<Vec<_>>().join("  |  ")
    )
}

fn summary(scene: &Scene, paint: Paint) -> String {
    let mut text = format!("\n{}\n", headline(scene, paint));
    for row in &scene.rows {
        if let Some(why) = &row.scored.last_failure {
            text.push_str(&format!("  {}: {}\n", row.name, paint.bad(why)));
        }
    }
    text
}

fn milliseconds(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1000.0;
    if value < 99.95 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> Scene {
        let row = |name, ok, failed, pods: &[bool]| Row {
            name,
            url: "http://localhost:41234".to_owned(),
            pods: pods.to_vec(),
            scored: Scored {
                ok,
                failed,
                waiting: 3,
                usual: Duration::from_micros(1234),
                slowest: Duration::from_millis(1300),
                last_failure: (failed > 0).then(|| "connection refused".to_owned()),
            },
            per_second: 20,
        };
        Scene {
            rows: vec![row("front", 1234, 0, &[true, true, false]), row("catalogue", 5, 2, &[])],
            deleted: 7,
            running: Duration::from_secs(61),
            left: None,
        }
    }

    #[test]
    fn pictures() {
        let scene = scene();
        let paint = Paint::new(false);
        let rows: Vec<String> = scene.rows.iter().map(|row| table_row(row, paint)).collect();
        insta::assert_snapshot!(format!(
            "{}\n{}{}",
            rows.join("\n"),
            plain_line(&scene),
            summary(&scene, paint)
        ));
    }
}
