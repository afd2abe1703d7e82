//! What is drawn on, and what can be clicked of it.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;

use super::super::editor::Editor;
use super::super::message::Target;
use super::super::text;
use super::super::theme::Theme;

/// Where something that can be clicked was drawn, front to back last to first.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Hits(Vec<(Rect, Target)>);

impl Hits {
    /// What is at a place.
    pub(in super::super) fn at(&self, column: u16, row: u16) -> Option<Target> {
        let place = Position::new(column, row);
        self.0.iter().rev().find(|(area, _)| area.contains(place)).map(|(_, target)| *target)
    }
}

/// Parts of a line, each in its style.
pub(super) type Spans = Vec<(String, Style)>;

pub(super) struct Canvas<'a> {
    pub(super) buffer: &'a mut Buffer,
    pub(super) theme: Theme,
    pub(super) hits: Hits,
    /// Where the terminal's cursor is to be.
    pub(super) caret: Option<Position>,
}

impl Canvas<'_> {
    pub(super) fn area(&self) -> Rect {
        self.buffer.area
    }

    /// Draws a text of at most `columns` columns and answers how many it took.
    pub(super) fn put(&mut self, x: u16, y: u16, columns: usize, text: &str, style: Style) -> u16 {
        let area = self.area();
        if !area.contains(Position::new(x, y)) {
            return 0;
        }
        let columns = columns.min(usize::from(area.right() - x));
        let (end, _) = self.buffer.set_stringn(x, y, text::cut(text, columns), columns, style);
        end - x
    }

    /// Draws a text that ends at the right of a line.
    pub(super) fn put_right(&mut self, line: Rect, text: &str, style: Style) {
        let wide = text::width(text).min(usize::from(line.width));
        let x = line.right().saturating_sub(u16::try_from(wide).unwrap_or(line.width));
        self.put(x, line.y, wide, text, style);
    }

    /// Draws parts one after another on one line and answers how many columns they took.
    pub(super) fn spans(&mut self, line: Rect, spans: &[(String, Style)]) -> u16 {
        let mut x = line.x;
        for (text, style) in spans {
            let left = usize::from(line.right().saturating_sub(x));
            if left == 0 {
                break;
            }
            x += self.put(x, line.y, left, text, *style);
        }
        x - line.x
    }

    /// Lays a style over an area.
    pub(super) fn tint(&mut self, area: Rect, style: Style) {
        self.buffer.set_style(area.intersection(self.buffer.area), style);
    }

    pub(super) fn hit(&mut self, area: Rect, target: Target) {
        self.hits.0.push((area, target));
    }

    /// A rule with a title in it.
    pub(super) fn rule(&mut self, line: Rect, title: &[(String, Style)]) {
        let dim = self.theme.dim();
        self.put(line.x, line.y, usize::from(line.width), &"─".repeat(usize::from(line.width)), dim);
        if title.is_empty() {
            return;
        }
        let inner = Rect { x: line.x + 2, width: line.width.saturating_sub(4), ..line };
        self.put(inner.x, line.y, 1, " ", dim);
        let used = self.spans(Rect { x: inner.x + 1, width: inner.width.saturating_sub(2), ..inner }, title);
        self.put(inner.x + 1 + used, line.y, 1, " ", dim);
    }

    /// An empty window for something large: below the title line, as wide as there is use for.
    pub(super) fn large_window(&mut self, title: &str, width: u16, height: u16) -> Rect {
        let area = self.area();
        // A strip beside it would only be torn text.
        let width = if area.width < width + 8 { area.width } else { width };
        let room = area.height.saturating_sub(2);
        let height = if room < height + 4 { room } else { height };
        self.window(title, width, height)
    }

    /// An empty window in the middle of the screen; answers what is inside of its frame.
    pub(super) fn window(&mut self, title: &str, width: u16, height: u16) -> Rect {
        let whole = self.area();
        // Between title and legend.
        let area = Rect { y: whole.y + 1, height: whole.height.saturating_sub(2), ..whole };
        self.dim_all(area);
        let width = width.min(area.width);
        let height = height.min(area.height);
        let frame = Rect {
            x: area.x + (area.width - width) / 2,
            // A little above the middle reads as the middle.
            y: area.y + (area.height - height) * 2 / 5,
            width,
            height,
        };
        // A wide letter that begins left of the window must not reach into it.
        self.blank(frame);
        let dim = self.theme.dim();
        let across = "─".repeat(usize::from(width.saturating_sub(2)));
        self.put(frame.x, frame.y, usize::from(width), &format!("╭{across}╮"), dim);
        for y in frame.y + 1..frame.bottom().saturating_sub(1) {
            self.put(frame.x, y, 1, "│", dim);
            self.put(frame.right() - 1, y, 1, "│", dim);
        }
        self.put(frame.x, frame.bottom().saturating_sub(1), usize::from(width), &format!("╰{across}╯"), dim);
        let room = usize::from(width.saturating_sub(6));
        let style = self.theme.accent().patch(self.theme.strong());
        self.put(frame.x + 2, frame.y, room + 2, &format!(" {} ", text::cut(title, room)), style);
        self.hit(whole, Target::Window);
        Rect {
            x: frame.x + 2,
            y: frame.y + 1,
            width: width.saturating_sub(4),
            height: height.saturating_sub(2),
        }
    }

    /// What is behind a window goes back.
    fn dim_all(&mut self, area: Rect) {
        let dim = self.theme.dim();
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.set_style(Style::reset().patch(dim));
                }
            }
        }
    }

    fn blank(&mut self, area: Rect) {
        for y in area.top()..area.bottom() {
            if area.x > 0
                && let Some(cell) = self.buffer.cell((area.x - 1, y))
                && text::width(cell.symbol()) > 1
                && let Some(cell) = self.buffer.cell_mut((area.x - 1, y))
            {
                cell.set_symbol(" ");
            }
            for x in area.left()..area.right() {
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.reset();
                }
            }
        }
    }

    /// A line that is typed in; with the caret if it has the keys.
    pub(super) fn input(&mut self, line: Rect, editor: &Editor, focused: bool, style: Style) {
        if line.width == 0 {
            return;
        }
        if !focused {
            self.put(line.x, line.y, usize::from(line.width), editor.text(), style);
            return;
        }
        let (shown, at) = editor.window(usize::from(line.width));
        self.put(line.x, line.y, usize::from(line.width), &shown, style);
        let at = u16::try_from(at).unwrap_or(0).min(line.width - 1);
        self.caret = Some(Position::new(line.x + at, line.y));
    }

    /// The lines of `area` that show items around the cursor: line, number, whether it is under the cursor. Items can be
    /// clicked.
    pub(super) fn rows(&mut self, area: Rect, count: usize, cursor: usize) -> Vec<(Rect, usize, bool)> {
        let height = usize::from(area.height);
        let top = cursor.saturating_sub(height / 2).min(count.saturating_sub(height));
        let mut rows = Vec::new();
        for (y, item) in (area.y..area.bottom()).zip(top..count) {
            let line = Rect { y, height: 1, ..area };
            self.hit(line, Target::Item(item));
            rows.push((line, item, item == cursor));
        }
        // What is above and below, told at the edge.
        let dim = self.theme.dim();
        let edge = area.right();
        if top > 0 {
            self.put(edge, area.y, 1, "↑", dim);
        }
        if top + height < count && area.height > 0 {
            self.put(edge, area.bottom() - 1, 1, "↓", dim);
        }
        rows
    }
}

/// A line of an area, counted from its top; empty below its end.
pub(super) fn line_of(area: Rect, number: u16) -> Rect {
    if number < area.height {
        Rect { y: area.y + number, height: 1, ..area }
    } else {
        Rect { y: area.bottom(), height: 0, width: 0, ..area }
    }
}
