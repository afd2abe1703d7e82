//! One line that a person types: search, fields of a form, paths.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use unicode_segmentation::UnicodeSegmentation as _;

use super::text;

/// Longest text that is taken, in bytes: more than any field holds, and a paste of a whole file stays harmless.
const LONGEST: usize = 4096;

/// A line and the place in it where typing goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Editor {
    text: String,
    /// Byte offset, always at the border of what people see as a letter.
    at: usize,
}

impl Editor {
    /// With a text, ready to go on at its end.
    pub(super) fn of(text: impl Into<String>) -> Self {
        let text = text.into();
        let at = text.len();
        Self { text, at }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether the key was for the line (typing, moving in it, deleting), whatever it changed.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        match (key.code, ctrl, alt) {
            (KeyCode::Char(letter), false, false) => self.insert(letter.encode_utf8(&mut [0; 4])),
            // AltGr arrives as both on Windows.
            (KeyCode::Char(letter), true, true) => self.insert(letter.encode_utf8(&mut [0; 4])),
            (KeyCode::Backspace, false, false) | (KeyCode::Char('h'), true, false) => {
                self.delete(self.before());
            }
            (KeyCode::Backspace, ..) | (KeyCode::Char('w'), true, false) => self.delete(self.word_before()),
            (KeyCode::Delete, ..) => {
                let after = self.after();
                self.text.replace_range(self.at..after, "");
                self.snap();
            }
            (KeyCode::Left, false, false) | (KeyCode::Char('b'), true, false) => self.at = self.before(),
            (KeyCode::Right, false, false) | (KeyCode::Char('f'), true, false) => self.at = self.after(),
            (KeyCode::Left, ..) => self.at = self.word_before(),
            (KeyCode::Right, ..) => self.at = self.word_after(),
            (KeyCode::Home, ..) | (KeyCode::Char('a'), true, false) => self.at = 0,
            (KeyCode::End, ..) | (KeyCode::Char('e'), true, false) => self.at = self.text.len(),
            (KeyCode::Char('u'), true, false) => self.delete(0),
            _ => return false,
        }
        true
    }

    /// Puts a text in, as typed or pasted: one line, without control characters.
    pub(super) fn insert(&mut self, text: &str) {
        let line = text.trim_end_matches(['\r', '\n']);
        let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if self.text.len() + clean.len() > LONGEST {
            return;
        }
        self.text.insert_str(self.at, &clean);
        self.at += clean.len();
        self.snap();
    }

    /// What meets anew may be one letter (a mark and what it marks, two halves of a flag): the place goes behind it.
    fn snap(&mut self) {
        if !self.borders().any(|border| border == self.at) {
            self.at = self.after();
        }
    }

    fn delete(&mut self, from: usize) {
        self.text.replace_range(from..self.at, "");
        self.at = from;
        self.snap();
    }

    fn borders(&self) -> impl Iterator<Item = usize> {
        self.text.grapheme_indices(true).map(|(at, _)| at).chain([self.text.len()])
    }

    fn before(&self) -> usize {
        self.borders().take_while(|border| *border < self.at).last().unwrap_or(0)
    }

    fn after(&self) -> usize {
        self.borders().find(|border| *border > self.at).unwrap_or(self.text.len())
    }

    /// The words' borders need not be letters' borders (Unicode Standard Annex #29): a mark that is written before its letter
    /// may be a word of its own. Hence the nearest border on the way.
    fn word_before(&self) -> usize {
        let words = self.text.unicode_word_indices().map(|(at, _)| at);
        let start = words.take_while(|at| *at < self.at).last().unwrap_or(0);
        self.borders().take_while(|border| *border <= start).last().unwrap_or(0)
    }

    fn word_after(&self) -> usize {
        let mut words = self.text.unicode_word_indices().map(|(at, word)| at + word.len());
        let end = words.find(|end| *end > self.at).unwrap_or(self.text.len());
        self.borders().find(|border| *border >= end).unwrap_or(self.text.len())
    }

    /// What a window of `columns` columns shows, and the column of the place to type at in it. The window follows the
    /// place.
    pub(super) fn window(&self, columns: usize) -> (String, usize) {
        let columns = columns.max(1);
        let (left, right) = self.text.split_at(self.at);
        let mut shown_left: Vec<&str> = Vec::new();
        let mut taken = 0;
        for letter in left.graphemes(true).rev() {
            let wide = text::width(letter);
            if taken + wide > columns - 1 {
                break;
            }
            taken += wide;
            shown_left.push(letter);
        }
        let at = taken;
        let mut shown: String = shown_left.into_iter().rev().collect();
        for letter in right.graphemes(true) {
            let wide = text::width(letter);
            if taken + wide > columns {
                break;
            }
            taken += wide;
            shown.push_str(letter);
        }
        (shown, at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn press(code: KeyCode, modifiers: KeyModifiers) -> KeyEvent {
        KeyEvent::new(code, modifiers)
    }

    fn typed(editor: &mut Editor, keys: &[(KeyCode, KeyModifiers)]) {
        for (code, modifiers) in keys {
            assert!(editor.key(press(*code, *modifiers)));
        }
    }

    #[test]
    fn words_and_letters() {
        const NONE: KeyModifiers = KeyModifiers::NONE;
        let mut editor = Editor::of("one two e\u{301}");
        typed(&mut editor, &[(KeyCode::Backspace, NONE)]);
        assert_eq!(editor.text(), "one two ");
        typed(&mut editor, &[(KeyCode::Char('w'), KeyModifiers::CONTROL)]);
        assert_eq!(editor.text(), "one ");
        typed(&mut editor, &[(KeyCode::Home, NONE), (KeyCode::Delete, NONE), (KeyCode::Char('O'), NONE)]);
        assert_eq!(editor.text(), "One ");
        typed(&mut editor, &[(KeyCode::End, NONE), (KeyCode::Char('u'), KeyModifiers::CONTROL)]);
        assert!(editor.is_empty());
        assert!(!editor.key(press(KeyCode::Up, NONE)));
        assert!(!editor.key(press(KeyCode::Char('s'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn a_paste_is_one_line() {
        let mut editor = Editor::default();
        editor.insert("a\nb\u{1b}[31m\r\n");
        assert_eq!(editor.text(), "a b [31m");
    }

    #[test]
    fn letters_that_meet_are_one() {
        let mut editor = Editor::of("\u{1F1E9}x\u{1F1EA}");
        typed(&mut editor, &[(KeyCode::Left, KeyModifiers::NONE), (KeyCode::Left, KeyModifiers::NONE)]);
        typed(
            &mut editor,
            &[(KeyCode::Delete, KeyModifiers::NONE), (KeyCode::Backspace, KeyModifiers::NONE)],
        );
        assert_eq!(editor.text(), "", "two halves of a flag are one letter");
    }

    #[test]
    fn the_window_follows() {
        let mut editor = Editor::of("日本語 text");
        assert_eq!(editor.window(5), ("text".to_owned(), 4));
        typed(&mut editor, &[(KeyCode::Home, KeyModifiers::NONE)]);
        assert_eq!(editor.window(5), ("日本".to_owned(), 0));
    }

    #[test]
    fn a_word_that_ends_within_a_letter() {
        // U+0D4E is written before its letter, here one of another script: two words, one letter.
        let mut editor = Editor::of("one \u{d4e}\u{30a2}");
        typed(&mut editor, &[(KeyCode::Left, KeyModifiers::CONTROL)]);
        assert_eq!(editor.at, 4);
        typed(&mut editor, &[(KeyCode::Right, KeyModifiers::CONTROL)]);
        assert_eq!(editor.at, editor.text().len());
    }

    /// Any letter, and often one of those that join with their neighbours: marks before and behind, joiners, halves of flags,
    /// parts of syllables, wide ones.
    fn letter() -> impl Strategy<Value = char> {
        let joining = "a 1\u{301}\u{200d}\u{fe0f}\u{20e3}\u{600}\u{d4e}\u{1f1e9}\u{1f1ea}\u{1f469}\u{1f3fd}\u{2764}\u{915}\u{94d}\u{930}\u{1100}\u{1161}\u{11a8}\u{30a2}\u{65e5}\u{e33}\u{644}\u{627}\u{2028}\u{ad}";
        prop_oneof![any::<char>(), proptest::sample::select(joining.chars().collect::<Vec<_>>())]
    }

    proptest! {
        #[test]
        fn the_place_stays_at_a_border(
            texts in proptest::collection::vec(proptest::collection::vec(letter(), 0..12).prop_map(String::from_iter), 1..6),
            keys in proptest::collection::vec((0_usize..9, letter(), 0_u8..8), 0..40),
        ) {
            let mut editor = Editor::default();
            for text in &texts {
                editor.insert(text);
                editor.key(press(KeyCode::Left, KeyModifiers::NONE));
            }
            for (which, letter, modifiers) in keys {
                let codes = [
                    KeyCode::Left, KeyCode::Right, KeyCode::Home, KeyCode::End, KeyCode::Backspace, KeyCode::Delete,
                    KeyCode::Up, KeyCode::Char(letter), KeyCode::Char('w'),
                ];
                editor.key(press(codes[which], KeyModifiers::from_bits_truncate(modifiers)));
                prop_assert!(editor.borders().any(|border| border == editor.at));
                let (shown, at) = editor.window(7);
                prop_assert!(text::width(&shown) <= 7);
                prop_assert!(at < 7);
            }
        }
    }
}
