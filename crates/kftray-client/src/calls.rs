//! One method per route.

use http::Method;
use kftray_commons::ForwardId;
use kftray_commons::api::{
    Action, ActionReport, ActionRequest, Config, ConfigList, ConfigPut, ContextList, DoctorReport,
    DoctorRequest, ExportReport, ExportRequest, ForwardList, ForwardState, GroupList, GroupPut, Hello,
    History, ImportReport, ImportRequest, NamespaceList, PortList, ServiceList, Settings, SettingsPatch,
    Snapshot, WorkloadList,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::request::{Question, ask};
use crate::{Client, Result, connect};

/// What stays as it is in a query: the unreserved marks of RFC 3986.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Which part of which cluster is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterQuery {
    /// Kubeconfig path list; none is `KUBECONFIG` of the host, else `~/.kube/config`.
    pub kubeconfig: Option<String>,
    /// Context; none is the current one.
    pub context: Option<String>,
    /// Namespace; none is the context's, `*` is all.
    pub namespace: Option<String>,
}

impl ClusterQuery {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let fields =
            [("kubeconfig", &self.kubeconfig), ("context", &self.context), ("namespace", &self.namespace)];
        fields.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }
}

fn query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut text = path.to_owned();
    for (index, (name, value)) in pairs.into_iter().enumerate() {
        let mark = if index == 0 { '?' } else { '&' };
        text.push(mark);
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(&value, QUERY));
    }
    text
}

/// Every method fails as [`crate::Result`] says: the host's own refusal, or `host_unreachable`.
#[expect(clippy::missing_errors_doc, reason = "said once for all of them, above")]
impl Client {
    /// Who the host is, now.
    pub async fn hello(&self) -> Result<Hello> {
        connect::hello(&self.place).await
    }

    /// Everything at this moment; [`Self::follow`] keeps it up to date.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        self.get("/snapshot").await
    }

    /// All configs.
    pub async fn configs(&self) -> Result<ConfigList> {
        self.get("/configs").await
    }

    /// One config.
    pub async fn config(&self, id: ForwardId) -> Result<Config> {
        self.get(&format!("/configs/{}", id.0)).await
    }

    /// A new config. It is written down, not started.
    pub async fn add_config(&self, config: &ConfigPut) -> Result<Config> {
        self.send(Question::new(Method::POST, "/configs").with(config)?).await
    }

    /// Changes a config. If it runs, it is started anew with the change.
    pub async fn put_config(&self, id: ForwardId, config: &ConfigPut) -> Result<Config> {
        self.send(Question::new(Method::PUT, format!("/configs/{}", id.0)).with(config)?).await
    }

    /// Removes a config; if it runs, it is stopped. Answers what was removed.
    pub async fn remove_config(&self, id: ForwardId) -> Result<Config> {
        self.send(Question::new(Method::DELETE, format!("/configs/{}", id.0))).await
    }

    /// Imports configs, or says what an import would do.
    pub async fn import(&self, request: &ImportRequest) -> Result<ImportReport> {
        self.send(Question::new(Method::POST, "/configs/import").with(request)?.patient()).await
    }

    /// Configs as a text.
    pub async fn export(&self, request: &ExportRequest) -> Result<ExportReport> {
        self.send(Question::new(Method::POST, "/configs/export").with(request)?).await
    }

    /// What runs, or has run since the host started.
    pub async fn forwards(&self) -> Result<ForwardList> {
        self.get("/forwards").await
    }

    /// One forward.
    pub async fn forward(&self, id: ForwardId) -> Result<ForwardState> {
        self.get(&format!("/forwards/{}", id.0)).await
    }

    /// What happened to a forward, newest first; at most `limit` entries.
    pub async fn history(&self, id: ForwardId, limit: u32) -> Result<History> {
        self.get(&query(&format!("/forwards/{}/history", id.0), [("limit", limit.to_string())])).await
    }

    /// Starts, stops or restarts what is selected.
    pub async fn act(&self, action: Action, request: &ActionRequest) -> Result<ActionReport> {
        let path = format!("/forwards/{}", action.as_str());
        self.send(Question::new(Method::POST, path).with(request)?).await
    }

    /// All groups.
    pub async fn groups(&self) -> Result<GroupList> {
        self.get("/groups").await
    }

    /// Puts configs into a group, which is made if it is not there, and takes others out.
    pub async fn put_group(&self, name: &str, change: &GroupPut) -> Result<GroupList> {
        let path = format!("/groups/{}", utf8_percent_encode(name, QUERY));
        self.send(Question::new(Method::PUT, path).with(change)?).await
    }

    /// Removes a group; its configs stay.
    pub async fn remove_group(&self, name: &str) -> Result<GroupList> {
        let path = format!("/groups/{}", utf8_percent_encode(name, QUERY));
        self.send(Question::new(Method::DELETE, path)).await
    }

    /// The contexts of a kubeconfig; none is the host's default.
    pub async fn contexts(&self, kubeconfig: Option<&str>) -> Result<ContextList> {
        let pairs = kubeconfig.map(|path| ("kubeconfig", path.to_owned()));
        self.get(&query("/kubeconfig/contexts", pairs)).await
    }

    /// The namespaces of a cluster.
    pub async fn namespaces(&self, cluster: &ClusterQuery) -> Result<NamespaceList> {
        self.ask_cluster("namespaces", cluster.pairs()).await
    }

    /// Its Services.
    pub async fn services(&self, cluster: &ClusterQuery) -> Result<ServiceList> {
        self.ask_cluster("services", cluster.pairs()).await
    }

    /// Its workloads and pods.
    pub async fn workloads(&self, cluster: &ClusterQuery) -> Result<WorkloadList> {
        self.ask_cluster("workloads", cluster.pairs()).await
    }

    /// The ports of one object; `kind` as in [`kftray_commons::api::WorkloadInfo`], or `service`.
    pub async fn ports(&self, cluster: &ClusterQuery, kind: &str, name: &str) -> Result<PortList> {
        let mut pairs = cluster.pairs();
        pairs.extend([("kind", kind.to_owned()), ("name", name.to_owned())]);
        self.ask_cluster("ports", pairs).await
    }

    /// The settings.
    pub async fn settings(&self) -> Result<Settings> {
        self.get("/settings").await
    }

    /// Changes settings; answers all of them.
    pub async fn set_settings(&self, patch: &SettingsPatch) -> Result<Settings> {
        self.send(Question::new(Method::PATCH, "/settings").with(patch)?).await
    }

    /// The doctor's report.
    pub async fn doctor(&self, request: &DoctorRequest) -> Result<DoctorReport> {
        self.send(Question::new(Method::POST, "/doctor").with(request)?.patient()).await
    }

    /// Ends the host. What shall run comes back with the next one.
    pub async fn shutdown(&self) -> Result<()> {
        ask(&self.place, Question::new(Method::POST, "/shutdown")).await.map(drop)
    }

    /// The API's OpenAPI document.
    pub async fn openapi(&self) -> Result<Value> {
        self.get("/openapi.json").await
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Question::new(Method::GET, path)).await
    }

    async fn ask_cluster<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        pairs: Vec<(&'static str, String)>,
    ) -> Result<T> {
        self.send(Question::new(Method::GET, query(&format!("/cluster/{what}"), pairs)).patient()).await
    }

    async fn send<T: serde::de::DeserializeOwned>(&self, question: Question) -> Result<T> {
        ask(&self.place, question).await?.json().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let pairs = [("context", "a b&c".to_owned()), ("namespace", "é*".to_owned())];
        assert_eq!(query("/x", pairs), "/x?context=a%20b%26c&namespace=%C3%A9%2A");
        assert_eq!(query("/x", []), "/x");
    }
}
