//! Ordinary clients: HTTP/1.1 by hand, so that every byte and every close is seen.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stream;

/// Connects to a forward on 127.0.0.1.
///
/// # Errors
/// When nothing listens there.
pub async fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .with_context(|| format!("connect to 127.0.0.1:{port}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One GET on a connection of its own; returns the body. Fails on any status but 200 and on a cut body.
///
/// # Errors
/// When the answer is not whole within `limit`.
pub async fn get(port: u16, path: &str, limit: Duration) -> Result<String> {
    let answer = async {
        let mut stream = connect(port).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let body = read_answer(&mut stream, &mut Vec::new()).await?;
        anyhow::Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(limit, answer)
        .await
        .with_context(|| format!("GET {path}: no answer within {limit:?}"))?
}

/// One request on a connection that is kept.
///
/// # Errors
/// When the answer is not whole or not 200.
pub async fn get_kept(stream: &mut TcpStream, rest: &mut Vec<u8>, path: &str) -> Result<Vec<u8>> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: e2e\r\n\r\n").as_bytes()).await?;
    read_answer(stream, rest).await
}

/// Reads one answer with Content-Length; bytes after it stay in `rest`.
async fn read_answer(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Result<Vec<u8>> {
    let mut buffer = std::mem::take(rest);
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        read_some(stream, &mut buffer).await?;
    };
    let text = String::from_utf8_lossy(&buffer[..head]).into_owned();
    ensure!(text.starts_with("HTTP/1.1 200 "), "{}", text.lines().next().unwrap_or(""));
    let length = text.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length:").map(|v| v.trim().parse::<usize>())
    });
    let length = length.context("Content-Length")??;
    while buffer.len() < head + length {
        read_some(stream, &mut buffer).await?;
    }
    *rest = buffer.split_off(head + length);
    Ok(buffer.split_off(head))
}

async fn read_some(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    if stream.read_buf(buffer).await? == 0 {
        bail!("closed after {} bytes of an answer", buffer.len());
    }
    Ok(())
}

/// Downloads `/bytes?n=` and checks each byte on the way.
///
/// # Errors
/// Names the first wrong byte, or where it was cut.
pub async fn download(port: u16, bytes: u64) -> Result<()> {
    let mut stream = connect(port).await?;
    stream
        .write_all(
            format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await?;
    let mut buffer = Vec::with_capacity(256 << 10);
    while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
        read_some(&mut stream, &mut buffer).await?;
    }
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
    ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer[..head]));
    buffer.drain(..head);
    let mut offset = 0;
    loop {
        if let Some(wrong) = stream::first_difference(offset, &buffer) {
            bail!("byte {wrong} of the download is wrong");
        }
        offset += buffer.len() as u64;
        buffer.clear();
        if offset >= bytes {
            ensure!(offset == bytes, "{offset} bytes instead of {bytes}");
            return Ok(());
        }
        ensure!(stream.read_buf(&mut buffer).await? > 0, "cut after {offset} of {bytes} bytes");
    }
}

/// Uploads `bytes` of the stream to `/upload` and returns the fixture's answer `{"count":N,"sha256":HEX}`.
///
/// # Errors
/// When the upload or its answer is cut.
pub async fn upload(port: u16, bytes: u64) -> Result<serde_json::Value> {
    let mut stream = connect(port).await?;
    let head =
        format!("POST /upload HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let period = stream::period();
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(period.len());
        stream
            .write_all(&period[..length])
            .await
            .with_context(|| format!("with {left} bytes left to upload"))?;
        left -= length as u64;
    }
    Ok(serde_json::from_slice(&read_answer(&mut stream, &mut Vec::new()).await?)?)
}
