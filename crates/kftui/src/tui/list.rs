//! The rows of the list, the cursor on them, and what is ticked.
//!
//! Cursor and ticks hold to forwards, not to line numbers: whatever the host tells, they stay on what they were put on, and
//! where that is gone, on what is in its place.

use std::collections::{BTreeMap, BTreeSet};

use kftray_commons::ForwardId;

use super::arrange::Arrangement;
use super::data::{Data, Entry, Totals};
use super::editor::Editor;

#[derive(Debug, Clone, Default)]
pub(super) struct List {
    pub(super) rows: Vec<Row>,
    pub(super) groups: Vec<Group>,
    /// All forwards, shown or not.
    pub(super) totals: Totals,
    /// Longest label and address that are shown, in columns.
    pub(super) widths: Widths,
    pub(super) arrangement: Arrangement,
    pub(super) search: Editor,
    pub(super) ticks: BTreeSet<ForwardId>,
    folded: BTreeSet<String>,
    /// Number of the row under the cursor; 0 while there is none.
    pub(super) cursor: usize,
    /// Number of the first row on the screen.
    pub(super) top: usize,
    /// A forward to go to as soon as it is there.
    pub(super) wanted: Option<ForwardId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    /// By number.
    Group(usize),
    Forward(ForwardId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) title: String,
    pub(super) members: Vec<ForwardId>,
    pub(super) folded: bool,
    pub(super) totals: Totals,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Widths {
    pub(super) label: usize,
    pub(super) target: usize,
    pub(super) address: usize,
}

/// What the cursor is on, whatever its line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Anchor {
    Group(String),
    Forward(ForwardId),
}

impl List {
    /// Makes the rows anew after the data, the search or the arrangement changed.
    pub(super) fn rebuild(&mut self, data: &Data) {
        let anchor = self.anchor();
        let place = self.cursor.saturating_sub(self.top);
        self.ticks.retain(|id| data.get(*id).is_some());
        let words: Vec<String> =
            self.search.text().to_lowercase().split_whitespace().map(str::to_owned).collect();
        self.totals = Totals::default();
        self.widths = Widths::default();
        let mut groups: BTreeMap<(u8, String), Vec<&Entry>> = BTreeMap::new();
        let mut flat: Vec<&Entry> = Vec::new();
        for entry in data.iter() {
            self.totals.add(entry.status());
            if !self.arrangement.shows(entry) || !entry.matches(&words) {
                continue;
            }
            self.widths.widen(entry);
            match self.arrangement.group(entry) {
                Some(group) => groups.entry(group).or_default().push(entry),
                None => flat.push(entry),
            }
        }
        self.rows.clear();
        self.groups.clear();
        for ((_, title), members) in groups {
            // While somebody searches, what is found is shown.
            let folded = self.folded.contains(&title) && words.is_empty();
            self.push_group(title, members, folded);
        }
        flat.sort_by_key(|entry| entry.order());
        self.rows.extend(flat.into_iter().map(|entry| Row::Forward(entry.id)));
        self.hold(anchor, place);
    }

    fn push_group(&mut self, title: String, mut members: Vec<&Entry>, folded: bool) {
        members.sort_by_key(|entry| entry.order());
        let mut totals = Totals::default();
        members.iter().for_each(|entry| totals.add(entry.status()));
        self.rows.push(Row::Group(self.groups.len()));
        if !folded {
            self.rows.extend(members.iter().map(|entry| Row::Forward(entry.id)));
        }
        let members = members.into_iter().map(|entry| entry.id).collect();
        self.groups.push(Group { title, members, folded, totals });
    }

    fn anchor(&self) -> Option<Anchor> {
        match self.rows.get(self.cursor)? {
            Row::Group(group) => Some(Anchor::Group(self.groups.get(*group)?.title.clone())),
            Row::Forward(id) => Some(Anchor::Forward(*id)),
        }
    }

    /// Puts the cursor back on what it was on, at the same height of the screen.
    fn hold(&mut self, anchor: Option<Anchor>, place: usize) {
        if let Some(wanted) = self.wanted
            && self.go_to(wanted)
        {
            self.wanted = None;
            return;
        }
        let found = anchor.and_then(|anchor| self.rows.iter().position(|row| self.is(row, &anchor)));
        match found {
            Some(row) => {
                self.cursor = row;
                self.top = row.saturating_sub(place);
            }
            None => self.cursor = self.cursor.min(self.rows.len().saturating_sub(1)),
        }
    }

    fn is(&self, row: &Row, anchor: &Anchor) -> bool {
        match (row, anchor) {
            (Row::Group(group), Anchor::Group(title)) => {
                self.groups.get(*group).is_some_and(|group| group.title == *title)
            }
            (Row::Forward(id), Anchor::Forward(wanted)) => id == wanted,
            (Row::Group(_), Anchor::Forward(_)) | (Row::Forward(_), Anchor::Group(_)) => false,
        }
    }

    /// Puts the cursor on a forward; false if it is not shown.
    pub(super) fn go_to(&mut self, id: ForwardId) -> bool {
        let Some(row) = self.rows.iter().position(|row| *row == Row::Forward(id)) else { return false };
        self.cursor = row;
        true
    }

    /// Moves the cursor by so many rows, up if negative, within the list.
    pub(super) fn step(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        self.cursor = self.cursor.saturating_add_signed(by).min(last);
    }

    /// Scrolls so that the cursor is among `height` rows on the screen.
    pub(super) fn follow(&mut self, height: usize) {
        let height = height.max(1);
        self.top = self.top.min(self.rows.len().saturating_sub(height));
        if self.cursor < self.top {
            self.top = self.cursor;
        }
        if self.cursor >= self.top + height {
            self.top = self.cursor + 1 - height;
        }
        // The heading of the first forward is worth a row.
        if self.cursor == 1 && height > 1 {
            self.top = 0;
        }
    }

    /// The forward under the cursor.
    pub(super) fn forward(&self) -> Option<ForwardId> {
        match self.rows.get(self.cursor)? {
            Row::Forward(id) => Some(*id),
            Row::Group(_) => None,
        }
    }

    /// The group under the cursor.
    pub(super) fn group(&self) -> Option<&Group> {
        match self.rows.get(self.cursor)? {
            Row::Group(group) => self.groups.get(*group),
            Row::Forward(_) => None,
        }
    }

    /// What a command is about: the ticked ones, else the group, else the forward under the cursor.
    pub(super) fn meant(&self) -> Vec<ForwardId> {
        if !self.ticks.is_empty() {
            return self.ticks.iter().copied().collect();
        }
        match self.group() {
            Some(group) => group.members.clone(),
            None => self.forward().into_iter().collect(),
        }
    }

    /// Every forward that the search and the arrangement let through, folded or not.
    pub(super) fn shown(&self) -> Vec<ForwardId> {
        let grouped = self.groups.iter().flat_map(|group| group.members.iter().copied());
        let flat = self.rows.iter().filter_map(|row| match row {
            Row::Forward(id) if self.groups.is_empty() => Some(*id),
            Row::Forward(_) | Row::Group(_) => None,
        });
        grouped.chain(flat).collect()
    }

    /// Ticks what is under the cursor, or takes the tick away; of a group all if not all are ticked.
    pub(super) fn tick(&mut self) {
        let meant = match self.group() {
            Some(group) => group.members.clone(),
            None => self.forward().into_iter().collect(),
        };
        self.tick_all_of(&meant);
    }

    /// Ticks all of these, or none of them if all are.
    pub(super) fn tick_all_of(&mut self, ids: &[ForwardId]) {
        if ids.iter().all(|id| self.ticks.contains(id)) {
            ids.iter().for_each(|id| {
                self.ticks.remove(id);
            });
        } else {
            self.ticks.extend(ids);
        }
    }

    /// Folds or unfolds the group under the cursor; of a forward, folds its group and goes there.
    pub(super) fn fold(&mut self, folded: bool) {
        let number = match self.rows.get(self.cursor) {
            Some(Row::Group(group)) => Some(*group),
            Some(Row::Forward(id)) if folded => {
                self.groups.iter().position(|group| group.members.contains(id))
            }
            Some(Row::Forward(_)) | None => None,
        };
        let Some(number) = number else { return };
        let Some(group) = self.groups.get(number) else { return };
        if folded {
            self.folded.insert(group.title.clone());
        } else {
            self.folded.remove(&group.title);
        }
        if let Some(row) = self.rows.iter().position(|row| *row == Row::Group(number)) {
            self.cursor = row;
        }
    }
}

impl Widths {
    fn widen(&mut self, entry: &Entry) {
        let wider = |width: &mut usize, text: &str| *width = (*width).max(super::text::width(text));
        wider(&mut self.label, entry.label());
        wider(&mut self.target, entry.target());
        wider(&mut self.address, &entry.address());
    }
}

impl List {
    /// Unfolds the group of a forward.
    pub(super) fn unfold(&mut self, id: ForwardId) {
        if let Some(group) = self.groups.iter().find(|group| group.members.contains(&id)) {
            self.folded.remove(&group.title);
        }
    }
}
