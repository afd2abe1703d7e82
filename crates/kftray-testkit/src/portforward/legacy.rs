//! The legacy channel protocol: one WebSocket, one connection per listed port, dialled at the handshake.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kftray_spdy::{channel, ws};
use tokio::sync::{Mutex, mpsc};

use super::Target;
use super::carrier::{self, CarrierReader, CarrierWriter, Envelope, Received};
use super::runtime::{self, Sink, Source};
use crate::api::rest::Query;
use crate::api::server::ApiStream;
use crate::api::status::Status;
use crate::cluster::Shared;

/// The ports of the query: `ports=80,443` or repeated.
pub(super) fn ports(query: &Query) -> Result<Vec<u16>, Status> {
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|list| list.split(',')) {
        let port = text.trim().parse().ok().filter(|&port: &u16| port > 0);
        ports.push(port.ok_or_else(|| Status::bad_request(format!("unable to parse \"{text}\" as a port")))?);
    }
    if ports.is_empty() || ports.len() > channel::MAX_PORTS {
        return Err(Status::bad_request("query parameter \"ports\" is required"));
    }
    Ok(ports)
}

/// Serves the ports until all of them, or the connection, have ended.
pub(super) async fn serve(shared: &Arc<Shared>, target: Target, stream: ApiStream, ports: Vec<u16>) {
    let faults = shared.faults.subscribe();
    let (reader, mut writer) = carrier::split(stream, Envelope::WebSocket, &shared.counters, faults);
    let cut = writer.cut();
    if greet(&mut writer, &ports).await.is_err() {
        return;
    }
    let writer = Arc::new(Mutex::new(writer));
    let mut inputs = Vec::new();
    let mut forwards = Vec::new();
    for (index, &port) in ports.iter().enumerate() {
        let (data_tx, data_rx) = mpsc::channel(1);
        inputs.push(data_tx);
        let sink = ChannelSink { writer: Arc::clone(&writer), index };
        let (shared, target, writer) = (Arc::clone(shared), target.clone(), Arc::clone(&writer));
        forwards.push(async move {
            let result = runtime::forward(&shared, &target, port, ChannelSource { data_rx }, sink).await;
            if let Err(text) = result {
                send(&writer, |frame| channel::put_error(frame, ws::Role::Server, index, &text)).await.ok();
            }
        });
    }
    // The read loop ends with the socket, and with it every input: the connections see their end and linger.
    let reading = read(reader, &writer, inputs);
    let forwarding = futures::future::join_all(forwards);
    tokio::pin!(reading, forwarding);
    tokio::select! {
        _ = &mut forwarding => {}
        () = cut.cancelled() => {}
        result = &mut reading => {
            if let Err(error) = result {
                tracing::debug!(%error, "legacy session ended");
            }
            forwarding.await;
        }
    }
    writer.lock().await.close().await;
}

async fn greet(writer: &mut CarrierWriter, ports: &[u16]) -> io::Result<()> {
    let mut greeting = Vec::new();
    for (index, &port) in ports.iter().enumerate() {
        channel::put_greeting(&mut greeting, ws::Role::Server, index, port).map_err(io::Error::other)?;
    }
    writer.put(&greeting).await
}

async fn read(
    mut reader: CarrierReader,
    writer: &Mutex<CarrierWriter>,
    inputs: Vec<mpsc::Sender<Bytes>>,
) -> io::Result<()> {
    let mut parser = channel::Parser::new(ws::Role::Server, inputs.len()).map_err(io::Error::other)?;
    loop {
        let (payload, ends) = match reader.read().await? {
            Received::Data { payload, ends } => (payload, ends),
            Received::Ping(payload) => {
                carrier::pong(writer, &payload).await?;
                continue;
            }
            Received::End => return Ok(()),
        };
        if let Some(channel::Event::Data { index, payload }) =
            parser.next(payload, ends).map_err(io::Error::other)?
            && let Some(input) = inputs.get(index)
        {
            // An error: that connection is over, the others go on. Waiting here is the vice: one port that does not
            // read stops all ports of the socket.
            input.send(payload).await.ok();
        }
    }
}

async fn send(
    writer: &Mutex<CarrierWriter>,
    put: impl FnOnce(&mut Vec<u8>) -> Result<(), channel::Error>,
) -> io::Result<()> {
    let mut frame = Vec::new();
    put(&mut frame).map_err(io::Error::other)?;
    writer.lock().await.put(&frame).await
}

struct ChannelSource {
    data_rx: mpsc::Receiver<Bytes>,
}

impl Source for ChannelSource {
    async fn next(&mut self) -> Option<Bytes> {
        self.data_rx.recv().await
    }
}

struct ChannelSink {
    writer: Arc<Mutex<CarrierWriter>>,
    index: usize,
}

impl Sink for ChannelSink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        send(&self.writer, |frame| channel::put_data(frame, ws::Role::Server, self.index, bytes)).await
    }
}
