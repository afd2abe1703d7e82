//! gRPC as it is on the wire (HTTP/2 without TLS at the program, messages with a length before them, the status in the
//! trailers): a program that echoes a stream of messages, and its caller.

use std::future::poll_fn;

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use hyper::http::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Serves `/echo.Echo/Stream` on a port of localhost, until the set is dropped.
///
/// # Errors
/// When there is no port left.
pub async fn serve() -> Result<(u16, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(async move { drop(connection(socket).await) });
        }
    });
    Ok((port, tasks))
}

async fn connection(socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = h2::server::handshake(socket).await?;
    let mut calls = JoinSet::new();
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        calls.spawn(async move { drop(echo(request, respond).await) });
    }
    Ok(())
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut answer = respond.send_response(head, false)?;
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        answer.send_data(data, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    answer.send_trailers(trailers)?;
    Ok(())
}

/// One call: each message is sent when the one before has come back. Checks content, order and the status at the end.
///
/// # Errors
/// Names what was not as it must be.
pub async fn call(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    uri: &str,
    messages: &[Vec<u8>],
) -> Result<()> {
    let (sender, connection) = h2::client::handshake(socket).await.context("HTTP/2")?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::post(format!("{uri}/echo.Echo/Stream"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut asking) = sender.ready().await?.send_request(request, false)?;
    // A proxy may hold the head of the answer back until there is something to say.
    asking.send_data(framed(messages.first().context("a message")?), false)?;
    let response = response.await.context("the head of the answer")?;
    ensure!(response.status() == 200, "{}", response.status());
    let mut body = response.into_body();
    let mut received = BytesMut::new();
    for (number, message) in messages.iter().enumerate() {
        if number > 0 {
            asking.send_data(framed(message), false)?;
        }
        let back = next(&mut body, &mut received).await.with_context(|| format!("message {number}"))?;
        ensure!(back == *message, "message {number} has changed: {} bytes", back.len());
    }
    asking.send_data(Bytes::new(), true)?;
    ensure!(poll_fn(|cx| body.poll_data(cx)).await.is_none() && received.is_empty(), "more than was sent");
    let trailers = body.trailers().await?.context("trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "{trailers:?}");
    Ok(())
}

fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

async fn next(body: &mut RecvStream, received: &mut BytesMut) -> Result<Vec<u8>> {
    loop {
        if let Some(mut head) = received.get(..5) {
            ensure!(head.get_u8() == 0, "compressed");
            let length = head.get_u32() as usize;
            if received.len() >= 5 + length {
                received.advance(5);
                return Ok(received.split_to(length).to_vec());
            }
        }
        let data = body.data().await.context("the answer ended")??;
        body.flow_control().release_capacity(data.len())?;
        received.extend_from_slice(&data);
    }
}
