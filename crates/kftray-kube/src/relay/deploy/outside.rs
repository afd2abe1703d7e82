//! What still keeps the world away from a public expose: an ingress class that does not exist, a certificate that is not
//! issued. Seen on the cluster's objects, as far as they may be seen; what may not be seen is taken to be in order.

use std::sync::Arc;
use std::time::Duration;

use kftray_commons::{Code, Problem};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::life::Followed;
use super::seen::{Certificate, Ingress, IngressClass, Named};
use crate::resolve::feed::{CERTIFICATES, INGRESS_CLASSES, INGRESSES, Phase, SECRET_NAMES, Scope, View};
use crate::resolve::feeds::Link;

/// For the first look at the objects, so that an expose is not called ready and the next moment not: some round trips.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// Classes that are named to a person who has asked for one that is not there.
const NAMED_CLASSES: usize = 5;

/// What a public expose needs of the cluster beyond its own objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) host: String,
    pub(super) namespace: String,
    /// Name of the Ingress.
    pub(super) ingress: String,
    pub(super) class: Class,
    pub(super) certificate: Option<WantedCertificate>,
}

/// Who is to serve the Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    Named(String),
    /// The cluster's default.
    Default,
    /// An annotation of the user's says so, in a way that only the controller knows.
    Annotated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedCertificate {
    /// The Secret; cert-manager's Certificate has the same name.
    pub(super) secret: String,
    /// `ClusterIssuer letsencrypt-prod`.
    pub(super) issuer: String,
}

/// Follows the objects. The receiver says what keeps callers away, if anything does; the task ends with its handle.
pub(super) async fn follow(
    link: &Link,
    needs: Needs,
) -> (watch::Receiver<Option<Problem>>, AbortOnDropHandle<()>) {
    let sender = watch::Sender::new(None);
    let mut receiver = sender.subscribe();
    let watching = Watching {
        ingress: Followed::of(link, INGRESSES, &needs.namespace, Scope::Named(needs.ingress.as_str().into())),
        classes: Followed::of(link, INGRESS_CLASSES, "", Scope::All),
        certificate: needs.certificate.as_ref().map(|wanted| {
            let name: Arc<str> = wanted.secret.as_str().into();
            let certificates =
                Followed::of(link, CERTIFICATES, &needs.namespace, Scope::Named(Arc::clone(&name)));
            (certificates, Followed::of(link, SECRET_NAMES, &needs.namespace, Scope::Named(name)))
        }),
        needs,
    };
    let task = AbortOnDropHandle::new(link.runtime.spawn(watching.run(sender)));
    // Late news are news all the same.
    drop(timeout(FIRST_LOOK, receiver.changed()).await);
    (receiver, task)
}

struct Watching {
    needs: Needs,
    ingress: Followed<Ingress>,
    classes: Followed<IngressClass>,
    certificate: Option<(Followed<Certificate>, Followed<Named>)>,
}

impl Watching {
    async fn run(mut self, out: watch::Sender<Option<Problem>>) {
        let mut looked = false;
        loop {
            let seen = Seen {
                ingress: self.ingress.view(),
                classes: self.classes.view(),
                certificate: self
                    .certificate
                    .as_mut()
                    .map(|(certificates, secrets)| (certificates.view(), secrets.view())),
            };
            if !seen.is_loading() {
                let problem = self.needs.judge(&seen);
                self.set_unsettled(problem.is_some());
                out.send_if_modified(|current| {
                    let news = !looked || *current != problem;
                    *current = problem;
                    news
                });
                looked = true;
            }
            let certificate = async {
                match &mut self.certificate {
                    Some((certificates, secrets)) => tokio::select! {
                        () = certificates.changed() => {}
                        () = secrets.changed() => {}
                    },
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.ingress.changed() => {}
                () = self.classes.changed() => {}
                () = certificate => {}
            }
        }
    }

    /// As long as something is missing, objects that may be read but not watched are read again.
    fn set_unsettled(&mut self, unsettled: bool) {
        self.ingress.set_unsettled(unsettled);
        self.classes.set_unsettled(unsettled);
        if let Some((certificates, secrets)) = &mut self.certificate {
            certificates.set_unsettled(unsettled);
            secrets.set_unsettled(unsettled);
        }
    }
}

struct Seen {
    ingress: View<Ingress>,
    classes: View<IngressClass>,
    certificate: Option<(View<Certificate>, View<Named>)>,
}

impl Seen {
    fn is_loading(&self) -> bool {
        let certificate = self.certificate.as_ref().is_some_and(|(certificates, secrets)| {
            certificates.phase == Phase::Loading || secrets.phase == Phase::Loading
        });
        self.ingress.phase == Phase::Loading || self.classes.phase == Phase::Loading || certificate
    }
}

impl Needs {
    fn judge(&self, seen: &Seen) -> Option<Problem> {
        let certificate = || {
            let (wanted, (certificates, secrets)) =
                self.certificate.as_ref().zip(seen.certificate.as_ref())?;
            self.judge_certificate(wanted, certificates, secrets)
        };
        self.judge_class(&seen.ingress, &seen.classes).or_else(certificate)
    }

    fn judge_class(&self, ingress: &View<Ingress>, classes: &View<IngressClass>) -> Option<Problem> {
        let served = ingress.objects.iter().any(|ingress| {
            let addresses = &ingress.status.load_balancer.ingress;
            addresses.iter().any(|address| !address.ip.is_empty() || !address.hostname.is_empty())
        });
        // Some controllers look at the name only and need no object for it: where one serves, nothing is missing.
        if served || !classes.is_known() {
            return None;
        }
        let host = &self.host;
        let mut message = match &self.class {
            Class::Named(class)
                if classes.objects.iter().all(|found| *found.metadata.meta.name != **class) =>
            {
                format!("the cluster has no ingress class `{class}`, so that nobody serves {host}")
            }
            Class::Default if !classes.objects.iter().any(|class| class.is_default()) => {
                format!(
                    "no ingress_class is set and the cluster has no default one, so that nobody serves {host}"
                )
            }
            Class::Named(_) | Class::Default | Class::Annotated => return None,
        };
        let names: Vec<&str> =
            classes.objects.iter().take(NAMED_CLASSES).map(|class| &*class.metadata.meta.name).collect();
        if !names.is_empty() {
            message.push_str(&format!("; its classes: {}", names.join(", ")));
        }
        Some(Problem::new(Code::IngressClassMissing, message))
    }

    fn judge_certificate(
        &self,
        wanted: &WantedCertificate,
        certificates: &View<Certificate>,
        secrets: &View<Named>,
    ) -> Option<Problem> {
        let Self { host, namespace, .. } = self;
        let WantedCertificate { secret, issuer } = wanted;
        let why = if let Some(certificate) = certificates.objects.first() {
            match certificate.ready() {
                (true, _) => return None,
                (false, "") => format!("{issuer} has the request"),
                (false, words) => words.trim_end_matches('.').to_owned(),
            }
        } else if !secrets.objects.is_empty() {
            return None;
        } else if certificates.is_known() {
            "cert-manager has made no Certificate for it".to_owned()
        } else if secrets.is_known() {
            let denied = certificates.broken().map(|problem| format!("; {problem}")).unwrap_or_default();
            format!("Secret {namespace}/{secret} is not there{denied}")
        } else {
            // Neither may be seen.
            return None;
        };
        let message = format!("the certificate of {host} is not issued yet: {why}");
        Some(Problem::new(Code::CertificatePending, message).with_remedy(format!(
            "Wait a minute; then look at `kubectl -n {namespace} describe certificate {secret}` and at {issuer}."
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<T: serde::de::DeserializeOwned>(objects: &[serde_json::Value]) -> View<T> {
        let objects = objects.iter().map(|object| Arc::new(serde_json::from_value(object.clone()).unwrap()));
        View { phase: Phase::Live, objects: objects.collect() }
    }

    fn denied<T>(message: &str) -> View<T> {
        View { phase: Phase::Denied(Problem::new(Code::Forbidden, message)), objects: Arc::default() }
    }

    fn named(name: &str) -> serde_json::Value {
        serde_json::json!({"metadata": {"name": name}})
    }

    fn needs(class: Class) -> Needs {
        Needs {
            host: "app.example.com".to_owned(),
            namespace: "shop".to_owned(),
            ingress: "app".to_owned(),
            class,
            certificate: Some(WantedCertificate {
                secret: "tls".to_owned(),
                issuer: "ClusterIssuer letsencrypt".to_owned(),
            }),
        }
    }

    #[test]
    fn a_class_that_is_missing_is_told_unless_somebody_serves() {
        let default = serde_json::json!({"metadata": {"name": "a", "annotations":
            {"ingressclass.kubernetes.io/is-default-class": "true"}}});
        let served = serde_json::json!({"metadata": {"name": "app"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let judge = |class: &Class, ingress: &View<Ingress>, classes: &View<IngressClass>| {
            needs(class.clone()).judge_class(ingress, classes).map(|problem| problem.message)
        };
        let nginx = Class::Named("nginx".to_owned());
        let (unserved, none, both) =
            (view(&[named("app")]), view(&[]), view(&[named("traefik"), named("nginx")]));
        assert_eq!(
            judge(&nginx, &unserved, &view(&[named("traefik"), named("alb")])).unwrap(),
            "the cluster has no ingress class `nginx`, so that nobody serves app.example.com; its classes: traefik, alb"
        );
        assert!(judge(&nginx, &unserved, &none).unwrap().ends_with("nobody serves app.example.com"));
        assert_eq!(judge(&nginx, &unserved, &both), None);
        assert_eq!(judge(&nginx, &view(&[served]), &none), None, "somebody serves it");
        assert_eq!(judge(&nginx, &unserved, &denied("no")), None, "it cannot be seen");
        assert!(judge(&Class::Default, &unserved, &both).unwrap().contains("no default one"));
        assert_eq!(judge(&Class::Default, &unserved, &view(&[default])), None);
        assert_eq!(judge(&Class::Annotated, &unserved, &none), None);
    }

    #[test]
    fn a_certificate_that_is_pending_is_told_in_its_issuers_words() {
        let needs = needs(Class::Default);
        let wanted = needs.certificate.clone().unwrap();
        let judge = |certificates: &View<Certificate>, secrets: &View<Named>| {
            needs.judge_certificate(&wanted, certificates, secrets)
        };
        let certificate = |status: &str, message: &str| {
            view(&[serde_json::json!({"metadata": {"name": "tls"}, "status": {"conditions":
                [{"type": "Ready", "status": status, "message": message}]}})])
        };
        let (there, missing, unseen) = (view(&[named("tls")]), view(&[]), denied("no"));
        let words = "Issuing certificate as Secret does not exist.";
        let told = judge(&certificate("False", words), &missing).unwrap();
        assert_eq!(told.code, Code::CertificatePending);
        assert_eq!(
            told.message,
            "the certificate of app.example.com is not issued yet: Issuing certificate as Secret does not exist"
        );
        assert!(told.remedy.contains("kubectl -n shop describe certificate tls"), "{}", told.remedy);
        assert_eq!(judge(&certificate("True", ""), &unseen), None);
        assert!(judge(&view(&[named("tls")]), &unseen).unwrap().message.contains("has the request"));
        assert!(judge(&view(&[]), &unseen).unwrap().message.contains("made no Certificate"));
        assert_eq!(judge(&view(&[]), &there), None, "somebody else has put it there");
        let told = judge(&denied("this cluster does not serve certificates"), &missing).unwrap().message;
        assert!(
            told.ends_with("Secret shop/tls is not there; this cluster does not serve certificates"),
            "{told}"
        );
        assert_eq!(judge(&denied("no"), &there), None);
        assert_eq!(judge(&denied("no"), &denied("no")), None, "nothing can be seen");
    }
}
