//! What was learned about the way to each cluster, from one host to the next: an old API server need not be found out anew
//! after every start.

use std::collections::BTreeMap;

use kftray_commons::Problem;
use kftray_kube::{Clusters, Transport, TransportMemory};

use crate::archive::Archive;

/// What earlier hosts learned. A text of another version is passed over: it will be learned again.
///
/// # Errors
/// What the store says.
pub(crate) async fn load(archive: &Archive) -> Result<TransportMemory, Problem> {
    let stored = archive.call(|store| store.transports()).await?;
    let known = |(cluster, text): (String, String)| Some((cluster, serde_json::from_str(&text).ok()?));
    Ok(TransportMemory::new(stored.into_iter().filter_map(known).collect::<BTreeMap<String, Transport>>()))
}

/// Writes down what is known now.
///
/// # Errors
/// What the store says.
pub(crate) async fn save(archive: &Archive, clusters: &Clusters) -> Result<(), Problem> {
    let now = clusters.transport_memory().snapshot();
    archive
        .call(move |store| {
            let stored = store.transports()?;
            for (cluster, _) in stored.iter().filter(|(cluster, _)| !now.contains_key(cluster)) {
                store.remember_transport(cluster, None)?;
            }
            for (cluster, transport) in &now {
                let text = serde_json::to_string(transport).unwrap_or_default();
                if !stored.contains(&(cluster.clone(), text.clone())) {
                    store.remember_transport(cluster, Some(&text))?;
                }
            }
            Ok(())
        })
        .await
}
