//! What happened to each forward. Of configs it is written down and survives a restart; of others the last is kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kftray_commons::api::{AD_HOC_IDS, History, HistoryEntry, HistoryKind};
use kftray_commons::{ForwardId, Problem};

use crate::archive::Archive;
use crate::clock;

/// Events of forwards without a config that are kept, of all of them together.
const AD_HOC_KEPT: usize = 2_000;

/// Writes and reads histories. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Chronicle {
    archive: Archive,
    ad_hoc: Arc<Mutex<VecDeque<(ForwardId, HistoryEntry)>>>,
}

impl Chronicle {
    pub(crate) fn new(archive: Archive) -> Self {
        Self { archive, ad_hoc: Arc::default() }
    }

    /// Notes an event.
    pub(crate) fn tell(&self, id: ForwardId, kind: HistoryKind, message: String, problem: Option<Problem>) {
        tracing::info!(forward = id.0, ?kind, message);
        let entry = HistoryEntry { at: clock::now(), kind, message, problem };
        if id.0 >= AD_HOC_IDS {
            let mut kept = self.ad_hoc();
            kept.push_back((id, entry));
            if kept.len() > AD_HOC_KEPT {
                kept.pop_front();
            }
            return;
        }
        self.archive.soon(move |store| {
            let text = serde_json::to_string(&entry).unwrap_or_default();
            if let Err(problem) = store.append_history(&[(id, entry.at, text)]) {
                tracing::warn!(%problem, "an event could not be written down");
            }
        });
    }

    /// The last events of a forward, newest first.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) async fn read(&self, id: ForwardId, limit: usize) -> Result<History, Problem> {
        if id.0 >= AD_HOC_IDS {
            let kept = self.ad_hoc();
            let of_it = kept.iter().rev().filter(|(of, _)| *of == id).take(limit);
            return Ok(History { entries: of_it.map(|(_, entry)| entry.clone()).collect() });
        }
        let rows = self.archive.call(move |store| store.history(id, limit)).await?;
        // What another version wrote may have a form of its own.
        let entry = |text: String| serde_json::from_str::<HistoryEntry>(&text).ok();
        Ok(History { entries: rows.into_iter().rev().filter_map(|row| entry(row.event)).collect() })
    }

    fn ad_hoc(&self) -> MutexGuard<'_, VecDeque<(ForwardId, HistoryEntry)>> {
        self.ad_hoc.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
