//! A small web shop in the cluster: a front page, a catalogue, a cart.
//!
//! The three share one memory, as they would share a database, so that the front page can show what the others hold
//! although pods of the in-process cluster cannot call each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use kftray_testkit::{FakeCluster, Handler, PodIdentity, handlers};

/// The namespace it lives in.
pub(super) const NAMESPACE: &str = "shop";

/// The container port of every program in it; the Services have port 80.
const PORT: u16 = 8080;

/// A pod's life: slow enough to be seen, quick enough not to bore. A real one starts no faster.
const STARTS: Duration = Duration::from_millis(700);
const BECOMES_READY: Duration = Duration::from_millis(500);
const ENDS: Duration = Duration::from_millis(800);

/// A Service of the shop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) replicas: u64,
    /// A word that every right answer holds.
    pub(super) proof: &'static str,
}

/// One has a single replica, so that one sees connections wait instead of fail.
pub(super) const PARTS: [Part; 3] = [
    Part { name: "front", replicas: 3, proof: "Harbour Tea" },
    Part { name: "catalogue", replicas: 2, proof: "\"products\"" },
    Part { name: "cart", replicas: 1, proof: "\"items\"" },
];

/// Sign, name, price in cents, what it says on the tin.
const PRODUCTS: [(&str, &str, u32, &str); 6] = [
    ("\u{1F375}", "Morning Fog", 890, "Green tea, steamed, from the first harvest"),
    ("\u{1F33A}", "Red Lighthouse", 740, "Hibiscus and rose hip, bright and sour"),
    ("\u{1F34B}", "Lemon Jetty", 680, "Black tea with lemon peel"),
    ("\u{1F33F}", "Quiet Mint", 620, "Mint, sage, and nothing else"),
    ("\u{1F330}", "Winter Pier", 960, "Roasted oolong with chestnut"),
    ("\u{1F353}", "Low Tide", 790, "White tea with wild strawberry"),
];

const PAGE: &str = include_str!("page.html");

/// What the shop remembers: how often each product is in the cart.
#[derive(Debug, Default)]
struct Memory {
    cart: [AtomicU64; PRODUCTS.len()],
}

impl Memory {
    fn add(&self, product: usize) -> bool {
        let Some(count) = self.cart.get(product) else { return false };
        count.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.cart.iter().map(|count| count.load(Ordering::Relaxed))
    }
}

/// Opens the shop: creates Deployments and Services and waits until every pod is ready.
pub(super) async fn open(cluster: &FakeCluster) -> Result<()> {
    let memory = Arc::new(Memory::default());
    for part in PARTS {
        let program = match part.name {
            "front" => front(&memory),
            "catalogue" => catalogue(),
            _ => cart(&memory),
        };
        cluster
            .deployment(part.name)
            .namespace(NAMESPACE)
            .replicas(part.replicas)
            .port("http", PORT, program)
            .pod_times(STARTS, BECOMES_READY, ENDS)
            .create()?;
        cluster.service(part.name).namespace(NAMESPACE).port(80, "http").create()?;
    }
    for part in PARTS {
        cluster.wait_ready(NAMESPACE, part.name, usize::try_from(part.replicas)?).await?;
    }
    Ok(())
}

fn front(memory: &Arc<Memory>) -> Handler {
    let memory = Arc::clone(memory);
    handlers::http(move |request, pod| {
        let path = request.uri().path().to_owned();
        let memory = Arc::clone(&memory);
        async move {
            if let Some(product) = path.strip_prefix("/add/") {
                let known = product.parse().is_ok_and(|product| memory.add(product));
                let status = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
                return answer(status, "application/json", cart_json(&memory, &pod));
            }
            match path.as_str() {
                "/" => answer(StatusCode::OK, "text/html; charset=utf-8", page(&memory, &pod)),
                "/pulse" => answer(StatusCode::OK, "application/json", cart_json(&memory, &pod)),
                _ => answer(StatusCode::NOT_FOUND, "text/plain", "no such page\n".to_owned()),
            }
        }
    })
}

fn catalogue() -> Handler {
    handlers::http(|_request, pod| async move {
        let products = PRODUCTS.map(
            |(_, name, cents, text)| serde_json::json!({ "name": name, "price": price(cents), "text": text }),
        );
        let body = serde_json::json!({ "pod": pod.name, "products": products });
        answer(StatusCode::OK, "application/json", body.to_string())
    })
}

fn cart(memory: &Arc<Memory>) -> Handler {
    let memory = Arc::clone(memory);
    handlers::http(move |_request, pod| {
        let body = cart_json(&memory, &pod);
        async move { answer(StatusCode::OK, "application/json", body) }
    })
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

fn cart_json(memory: &Memory, pod: &PodIdentity) -> String {
    let held = PRODUCTS.iter().zip(memory.counts()).filter(|(_, count)| *count > 0);
    let items: Vec<_> =
        held.map(|((_, name, _, _), count)| serde_json::json!({ "name": name, "count": count })).collect();
    let count: u64 = memory.counts().sum();
    serde_json::json!({ "pod": pod.name, "count": count, "items": items }).to_string()
}

fn price(cents: u32) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn page(memory: &Memory, pod: &PodIdentity) -> String {
    let mut cards = String::new();
    for (number, (sign, name, cents, text)) in PRODUCTS.iter().enumerate() {
        cards.push_str(&format!(
            "<article><span class=sign>{sign}</span><h2>{name}</h2><p>{text}</p>\
             <footer><b>{}</b><button data-add={number}>Add to cart</button></footer></article>",
            price(*cents)
        ));
    }
    let count: u64 = memory.counts().sum();
    PAGE.replace("{{cards}}", &cards).replace("{{count}}", &count.to_string()).replace("{{pod}}", &pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_holds_its_proof() {
        let memory = Memory::default();
        assert!(memory.add(0) && memory.add(0) && memory.add(5) && !memory.add(6));
        let pod = PodIdentity { namespace: "shop".into(), name: "front-1".into(), uid: "u".into() };
        let html = page(&memory, &pod);
        assert!(html.contains(PARTS[0].proof) && html.contains("front-1") && !html.contains("{{"), "{html}");
        let cart = cart_json(&memory, &pod);
        assert!(cart.contains(PARTS[2].proof) && cart.contains("\"count\":3"), "{cart}");
        assert_eq!(price(890), "8.90");
    }
}
