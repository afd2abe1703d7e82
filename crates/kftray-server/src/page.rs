//! What an HTTP caller of a listener gets when no client answers.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For the caller to take the page and close. Without it, closing a socket with unread bytes resets it, and the page with it.
const LINGER: Duration = Duration::from_secs(2);

/// Request bytes that are read and thrown away meanwhile.
const LINGER_BYTES: u64 = 1024 * 1024;

/// Nobody is connected who could answer.
pub(crate) async fn no_tunnel(socket: TcpStream, name: &str) {
    let text = format!(
        "{name} is exposed by a kftray client that is not connected now.\nStart it, or wait: it reconnects by itself."
    );
    send(socket, "503 Service Unavailable", "Retry-After: 5\r\n", &text).await;
}

/// The client refuses the connection.
pub(crate) async fn refused(socket: TcpStream, name: &str, why: &str) {
    let text = format!("The kftray client that exposes {name} does not take the connection: {why}.");
    send(socket, "502 Bad Gateway", "", &text).await;
}

async fn send(mut socket: TcpStream, status: &str, headers: &str, text: &str) {
    let length = text.len() + 1;
    let page = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n{headers}Connection: close\r\n\r\n{text}\n"
    );
    let exchange = async {
        socket.write_all(page.as_bytes()).await?;
        socket.shutdown().await?;
        tokio::io::copy(&mut socket.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // Whether the caller took it is the caller's business.
    timeout(LINGER, exchange).await.ok();
}
