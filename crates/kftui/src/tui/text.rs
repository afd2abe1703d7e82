//! Texts on a grid of cells: how wide they are, how they are cut, how amounts and times are put.
//!
//! Names come from clusters and files; whatever is in them must neither break the columns nor reach the terminal as a
//! command. Widths are those of Unicode Standard Annex #11; what people see as one letter is never cut in two.

use std::borrow::Cow;
use std::time::Duration;

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::UnicodeWidthStr as _;

/// What stands for a part that was cut off.
const CUT: &str = "…";

/// What stands for a control character: visible, one column wide.
const CONTROL: char = '·';

/// Columns that a text takes, letter by letter as it is drawn: ligatures that a terminal may join count in full.
pub(super) fn width(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    text.graphemes(true).map(|letter| letter.width()).sum()
}

/// The text without control characters.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() => CONTROL,
        c => c,
    };
    Cow::Owned(text.chars().map(shown).collect())
}

/// At most `columns` columns of a text, the end marked where something is missing.
pub(super) fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    let text = clean(text);
    if width(&text) <= columns {
        return text;
    }
    if columns == 0 {
        return Cow::Borrowed("");
    }
    let mut kept = String::new();
    let mut taken = 0;
    for letter in text.graphemes(true) {
        let wide = letter.width();
        if taken + wide > columns - 1 {
            break;
        }
        taken += wide;
        kept.push_str(letter);
    }
    kept.push_str(CUT);
    Cow::Owned(kept)
}

/// Exactly `columns` columns: cut or filled with blanks.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let mut fitted = cut(text, columns).into_owned();
    let missing = columns.saturating_sub(width(&fitted));
    fitted.extend(std::iter::repeat_n(' ', missing));
    fitted
}

/// As [`fit`], the text at the right end.
pub(super) fn fit_right(text: &str, columns: usize) -> String {
    let kept = cut(text, columns);
    let missing = columns.saturating_sub(width(&kept));
    format!("{}{kept}", " ".repeat(missing))
}

/// Lines of at most `columns` columns, broken between words where that is possible.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut taken = 0;
    for word in clean(text).split_whitespace() {
        let gap = usize::from(taken > 0);
        if taken > 0 && taken + gap + width(word) > columns {
            lines.push(std::mem::take(&mut line));
            taken = 0;
        } else if gap > 0 {
            line.push(' ');
            taken += 1;
        }
        // A word may be longer than a line, as paths and digests are.
        for letter in word.graphemes(true) {
            let wide = letter.width();
            if taken + wide > columns && taken > 0 {
                lines.push(std::mem::take(&mut line));
                taken = 0;
            }
            line.push_str(letter);
            taken += wide;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// `0 B`, `999 B`, `12.3 kB`, `1.4 GB`; decimal, as networks count.
pub(super) fn bytes(amount: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if amount < 1000 {
        return format!("{amount} B");
    }
    // Exact enough for three digits.
    let mut left = amount as f64 / 1000.0;
    let mut unit = 0;
    while left >= 999.5 && unit + 1 < UNITS.len() {
        left /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("PB");
    if left < 99.95 { format!("{left:.1} {name}") } else { format!("{left:.0} {name}") }
}

/// `850 µs`, `3.2 ms`, `1.20 s`.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..100_000 => format!("{:.1} ms", micros as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// `5 s`, `3 min`, `2 h 10 min`, `4 d 3 h`: as exact as it matters.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86_400 if minutes % 60 == 0 => format!("{hours} h"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ if hours % 24 == 0 => format!("{days} d"),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// `1 forward`, `3 forwards`.
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cut_where_people_see_letters() {
        assert_eq!(cut("plain", 5), "plain");
        assert_eq!(cut("plain", 4), "pla…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        // A family is one letter, two columns wide.
        assert_eq!(cut("👨‍👩‍👧x", 3), "👨‍👩‍👧x");
        assert_eq!(cut("👨‍👩‍👧xy", 3), "👨‍👩‍👧…");
        assert_eq!(cut("e\u{301}te\u{301}", 2), "e\u{301}…");
        assert_eq!(cut("x", 0), "");
        assert_eq!(cut("a\u{1b}[2Jb", 9), "a·[2Jb");
    }

    #[test]
    fn lines() {
        assert_eq!(wrap("no pod of cart is ready", 10), ["no pod of", "cart is", "ready"]);
        assert_eq!(wrap("0123456789abc", 5), ["01234", "56789", "abc"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("日本語", 3), ["日", "本", "語"]);
        assert_eq!(wrap("in this window. (a-b)", 14), ["in this", "window. (a-b)"]);
    }

    #[test]
    fn amounts() {
        let told = [0, 999, 1000, 12_345, 99_950, 999_499, 999_500, 1_400_000_000].map(bytes);
        assert_eq!(told, ["0 B", "999 B", "1.0 kB", "12.3 kB", "100 kB", "999 kB", "1.0 MB", "1.4 GB"]);
        assert_eq!([5, 3_240, 120_400, 1_200_000].map(micros), ["5 µs", "3.2 ms", "120 ms", "1.20 s"]);
        let spans = [5, 185, 7200, 7800, 86_400, 100_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["5 s", "3 min", "2 h", "2 h 10 min", "1 d", "1 d 3 h"]);
    }

    proptest! {
        #[test]
        fn never_wider_than_asked(text in any::<String>(), columns in 0_usize..40) {
            prop_assert!(width(&cut(&text, columns)) <= columns);
            prop_assert_eq!(width(&fit(&text, columns)), columns);
            prop_assert_eq!(width(&fit_right(&text, columns)), columns);
            prop_assert!(!cut(&text, columns).contains(char::is_control));
            for line in wrap(&text, columns.max(2)) {
                // A letter that is wider than a line cannot be broken.
                prop_assert!(width(&line) <= columns.max(2) || line.graphemes(true).count() == 1);
            }
        }
    }
}
