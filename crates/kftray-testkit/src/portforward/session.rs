//! A SPDY session as spdystream and cri-streaming serve it: a read loop, five workers, one write lock.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use kftray_spdy::frame::{self, Encoder, Frame, HeaderList, Limits, Parser, ResetStatus, StreamId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Target;
use super::carrier::{self, CarrierReader, CarrierWriter, Envelope, Received};
use super::runtime::{self, Sink};
use super::stream::{Assembly, Pair, Role, Stream, StreamSource, read_headers};
use super::vices::{COPY_BUFFER, QUEUE, WORKERS};
use super::worker::{Work, work};
use crate::api::server::ApiStream;
use crate::cluster::Shared;
use crate::faults::FaultState;
use crate::sync::{Tasks, lock};

/// After GOAWAY and the last stream the carrier is still read for this long: closed with bytes unread it would be reset, and a
/// reset takes the GOAWAY away from a client that has not read it yet.
const FAREWELL: Duration = Duration::from_millis(300);

/// Serves a session until the connection or the idle time ends it.
pub(crate) async fn serve(shared: &Arc<Shared>, target: Target, stream: ApiStream, envelope: Envelope) {
    let faults = shared.faults.subscribe();
    let (reader, writer) = carrier::split(stream, envelope, &shared.counters, faults);
    // The session's tasks are owned here; they know the session, the session knows them only weakly.
    let tasks = Arc::new(Tasks::default());
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        target,
        writer: tokio::sync::Mutex::new(writer),
        encoder: Mutex::new(Encoder::new()),
        streams: Mutex::new(HashMap::new()),
        pairs: Mutex::new(HashMap::new()),
        last_stream: AtomicU32::new(0),
        gone_away: AtomicBool::new(false),
        ending: AtomicBool::new(false),
        activity: watch::Sender::new(Instant::now()),
        empty: watch::Sender::new(true),
        tasks: Arc::downgrade(&tasks),
    });
    let mut queues = Vec::new();
    for _ in 0..WORKERS {
        let (queue_tx, queue_rx) = mpsc::channel(QUEUE);
        queues.push(queue_tx);
        tasks.start(work(Arc::clone(&session), queue_rx));
    }
    let cut = session.writer.lock().await.cut();
    let result = tokio::select! {
        () = cut.cancelled() => Ok(()),
        result = session.read(reader, &queues) => result,
        () = session.idle() => Ok(()),
        () = session.gone() => Ok(()),
        () = session.throw_faults() => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "session ended");
    }
    drop(queues);
    session.end().await;
    // Connections into pods linger on without their session, as goroutines do.
    tasks.drain(shared.timings.linger * 2 + Duration::from_secs(1)).await;
}

pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    target: Target,
    /// The write lock: one client that does not read holds it for all.
    writer: tokio::sync::Mutex<CarrierWriter>,
    encoder: Mutex<Encoder>,
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
    pairs: Mutex<HashMap<String, Pair>>,
    last_stream: AtomicU32,
    /// New streams are ignored.
    gone_away: AtomicBool,
    /// Ends with its last stream.
    ending: AtomicBool,
    /// When the last frame came or went.
    activity: watch::Sender<Instant>,
    /// Whether no stream is left.
    empty: watch::Sender<bool>,
    tasks: Weak<Tasks>,
}

impl Session {
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        // No owner any more means that the session is over.
        if let Some(tasks) = self.tasks.upgrade() {
            tasks.start(task);
        }
    }

    /// The read loop. It stops reading, PINGs included, as long as any queue is full.
    async fn read(
        self: &Arc<Self>,
        mut reader: CarrierReader,
        queues: &[mpsc::Sender<Work>],
    ) -> io::Result<()> {
        let mut parser = Parser::server(Limits::default());
        let mut frames = Assembly::default();
        let mut next_worker = 0_u32;
        loop {
            let mut payload = match reader.read().await? {
                Received::Data { payload, .. } => payload,
                Received::Ping(payload) => {
                    carrier::pong(&self.writer, &payload).await?;
                    continue;
                }
                Received::End => return Ok(()),
            };
            while let Some(frame) = parser.next(&mut payload).map_err(io::Error::other)? {
                self.activity.send_replace(Instant::now());
                let Some((id, work)) = self.sort(frame, &mut frames) else { continue };
                let worker = id.unwrap_or_else(|| {
                    next_worker = (next_worker + 1) % WORKERS;
                    next_worker
                }) % WORKERS;
                let Some(queue) = usize::try_from(worker).ok().and_then(|worker| queues.get(worker)) else {
                    continue;
                };
                queue.send(work).await.map_err(io::Error::other)?;
            }
        }
    }

    /// The stream (`None`: of the session) and the work a frame makes.
    fn sort(self: &Arc<Self>, frame: Frame, frames: &mut Assembly) -> Option<(Option<u32>, Work)> {
        match frame {
            Frame::SynStream { stream, fin, headers, .. } => {
                let stream = self.add(stream, fin)?;
                let id = stream.id.get();
                Some((Some(id), Work::Open(stream, headers.unwrap_or_default())))
            }
            Frame::Data(chunk) => {
                let payload = frames.push(chunk.payload, chunk.ends_frame)?;
                let id = chunk.stream.get();
                Some((Some(id), Work::Data { id, payload, fin: chunk.fin }))
            }
            Frame::RstStream { stream, .. } => {
                self.shared.counters.resets.add(1);
                Some((Some(stream.get()), Work::Reset(stream.get())))
            }
            Frame::Ping { id } => {
                self.shared.counters.pings.add(1);
                Some((None, Work::Ping(id)))
            }
            Frame::GoAway { .. } => Some((None, Work::GoAway)),
            // Clients open every stream, so there is nothing to reply to; headers, settings and windows are ignored.
            Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Settings { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown { .. } => None,
        }
    }

    /// Takes a new stream in, or refuses a bad id; streams after GOAWAY are ignored.
    fn add(self: &Arc<Self>, id: StreamId, fin: bool) -> Option<Arc<Stream>> {
        if self.gone_away.load(Ordering::SeqCst) {
            return None;
        }
        if !id.is_client() || id.get() <= self.last_stream.load(Ordering::SeqCst) {
            let session = Arc::clone(self);
            self.start(async move {
                session.send_reset(id, ResetStatus::PROTOCOL_ERROR).await.ok();
            });
            return None;
        }
        self.last_stream.store(id.get(), Ordering::SeqCst);
        // Capacity 1 where Go's channel has none: tokio's smallest.
        let (data_tx, data_rx) = mpsc::channel(1);
        let stream = Arc::new(Stream {
            id,
            data_tx: Mutex::new((!fin).then_some(data_tx)),
            data_rx: Mutex::new(Some(data_rx)),
            replied: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            closed: CancellationToken::new(),
            _entered: self.shared.counters.streams.enter(),
        });
        lock(&self.streams).insert(id.get(), Arc::clone(&stream));
        self.empty.send_replace(false);
        Some(stream)
    }

    pub(super) fn stream(&self, id: u32) -> Option<Arc<Stream>> {
        lock(&self.streams).get(&id).cloned()
    }

    pub(super) fn remove(&self, stream: &Stream) {
        let mut streams = lock(&self.streams);
        streams.remove(&stream.id.get());
        let empty = streams.is_empty();
        drop(streams);
        self.empty.send_if_modified(|was| std::mem::replace(was, empty) != empty);
    }

    /// `httpStreamReceived` of cri-streaming: checks the headers, replies, finds the other half.
    pub(super) async fn open(self: &Arc<Self>, stream: Arc<Stream>, headers: &HeaderList) -> io::Result<()> {
        let Some((request, role)) = read_headers(&stream, headers) else {
            return self.reset(&stream).await;
        };
        if self.shared.faults.borrow().hold_replies {
            let session = Arc::clone(self);
            self.start(async move {
                let mut faults = session.shared.faults.subscribe();
                if faults.wait_for(|faults| !faults.hold_replies).await.is_ok() {
                    session.accept(stream, request, role).await.ok();
                }
            });
            return Ok(());
        }
        self.accept(stream, request, role).await
    }

    async fn accept(self: &Arc<Self>, stream: Arc<Stream>, request: String, role: Role) -> io::Result<()> {
        let mut reply = Vec::new();
        lock(&self.encoder).syn_reply(&mut reply, stream.id, &[], false);
        // Version, type, length, stream id and block are a write each in Go's framer.
        self.send(&reply, &[2, 2, 4, 4]).await?;
        stream.replied.store(true, Ordering::SeqCst);
        self.pair(stream, request, role);
        Ok(())
    }

    fn pair(self: &Arc<Self>, stream: Arc<Stream>, request: String, role: Role) {
        let mut pairs = lock(&self.pairs);
        let fresh = !pairs.contains_key(&request);
        let pair = pairs.entry(request.clone()).or_default();
        match role {
            Role::Data(port) => pair.data = Some((stream, port)),
            Role::Error => pair.error = Some(stream),
        }
        let session = Arc::clone(self);
        if let (Some((data, port)), Some(error)) = (&pair.data, &pair.error) {
            let (data, port, error) = (Arc::clone(data), *port, Arc::clone(error));
            pair.complete.cancel();
            pairs.remove(&request);
            drop(pairs);
            self.start(async move { session.forward(data, port, error).await });
        } else if fresh {
            let complete = pair.complete.clone();
            drop(pairs);
            self.start(async move {
                let limit = session.shared.timings.stream_creation;
                if tokio::time::timeout(limit, complete.cancelled()).await.is_err() {
                    session.give_up(&request).await;
                }
            });
        }
    }

    /// A pair that was not completed in time.
    async fn give_up(&self, request: &str) {
        let pair = lock(&self.pairs).remove(request);
        let Some(pair) = pair else { return };
        if let Some(error) = pair.error {
            let text = format!("(request={request}) timed out waiting for streams");
            self.send_data(&error, text.as_bytes(), false).await.ok();
            self.reset(&error).await.ok();
        }
        if let Some((data, _)) = pair.data {
            self.reset(&data).await.ok();
        }
    }

    async fn forward(self: &Arc<Self>, data: Arc<Stream>, port: u16, error: Arc<Stream>) {
        let Some(data_rx) = lock(&data.data_rx).take() else { return };
        let source = StreamSource { stream: Arc::clone(&data), data_rx };
        let sink = StreamSink { session: Arc::clone(self), stream: Arc::clone(&data) };
        let result = runtime::forward(&self.shared, &self.target, port, source, sink).await;
        match result {
            Ok(()) => {
                self.send_data(&data, &[], true).await.ok();
                self.send_data(&error, &[], true).await.ok();
            }
            Err(text) => {
                self.send_data(&error, text.as_bytes(), false).await.ok();
                self.reset(&data).await.ok();
                self.reset(&error).await.ok();
            }
        }
        for stream in [data, error] {
            stream.close();
            self.remove(&stream);
        }
    }

    // Writing.

    /// Writes a frame in the pieces that Go's framer writes: `cuts` bytes each, then the rest.
    async fn send(&self, frame: &[u8], cuts: &[usize]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        let mut rest = frame;
        for &cut in cuts {
            let Some((piece, later)) = rest.split_at_checked(cut) else { break };
            writer.write(piece).await?;
            rest = later;
        }
        if !rest.is_empty() {
            writer.write(rest).await?;
        }
        self.activity.send_replace(Instant::now());
        Ok(())
    }

    async fn send_data(&self, stream: &Stream, payload: &[u8], fin: bool) -> io::Result<()> {
        let over = if fin {
            stream.finished.swap(true, Ordering::SeqCst)
        } else {
            stream.finished.load(Ordering::SeqCst)
        };
        if over {
            return Err(io::Error::other("Write on closed stream"));
        }
        let mut frame = Vec::with_capacity(payload.len() + frame::HEADER);
        frame::put_data(&mut frame, stream.id, payload, fin);
        self.send(&frame, &[4, 4]).await
    }

    /// Ends a stream both ways, once.
    async fn reset(&self, stream: &Stream) -> io::Result<()> {
        self.remove(stream);
        stream.close();
        if stream.finished.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.send_reset(stream.id, ResetStatus::CANCEL).await
    }

    async fn send_reset(&self, id: StreamId, status: ResetStatus) -> io::Result<()> {
        let mut frame = Vec::new();
        frame::put_rst_stream(&mut frame, id, status);
        self.send(&frame, &[2, 2, 4, 4]).await
    }

    pub(super) async fn send_ping(&self, id: u32) -> io::Result<()> {
        let mut frame = Vec::new();
        frame::put_ping(&mut frame, id);
        self.send(&frame, &[2, 2, 4]).await
    }

    async fn send_goaway(&self) -> io::Result<()> {
        let mut frame = Vec::new();
        frame::put_goaway(&mut frame, self.last_stream.load(Ordering::SeqCst), 0);
        self.send(&frame, &[2, 2, 4, 4]).await
    }

    // Ends.

    /// Waits until nothing has come or gone for the idle time.
    async fn idle(&self) {
        let limit = self.shared.timings.session_idle;
        loop {
            let due = *self.activity.borrow() + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    /// Waits until the session has gone away and its last stream has ended.
    async fn gone(&self) {
        let mut empty = self.empty.subscribe();
        loop {
            if self.ending.load(Ordering::SeqCst) && *empty.borrow_and_update() {
                return tokio::time::sleep(FAREWELL).await;
            }
            if empty.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn go_away(&self) {
        self.gone_away.store(true, Ordering::SeqCst);
        self.ending.store(true, Ordering::SeqCst);
        // Wakes `gone`, whatever the value.
        self.empty.send_modify(|_| {});
    }

    /// Throws the faults that happen to a session at a moment. Never returns while the cluster lives.
    async fn throw_faults(&self) {
        let mut faults = self.shared.faults.subscribe();
        let generations = |state: &FaultState| (state.corrupt_generation, state.goaway_generation);
        let (mut corrupt, mut goaway) = generations(&faults.borrow_and_update());
        while faults.changed().await.is_ok() {
            let now = generations(&faults.borrow_and_update());
            if std::mem::replace(&mut corrupt, now.0) != now.0 {
                // A control frame of version 99.
                self.send(&[0x80, 99, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], &[]).await.ok();
            }
            if std::mem::replace(&mut goaway, now.1) != now.1 {
                // From here on new streams are ignored; but the session must not end before that is told.
                self.gone_away.store(true, Ordering::SeqCst);
                self.send_goaway().await.ok();
                self.go_away();
            }
        }
    }

    async fn end(&self) {
        for stream in lock(&self.streams).drain().map(|(_, stream)| stream) {
            stream.finished.store(true, Ordering::SeqCst);
            stream.close();
        }
        lock(&self.pairs).clear();
        // A client that does not read must not keep a dead session from closing.
        let close = async { self.writer.lock().await.close().await };
        tokio::time::timeout(Duration::from_secs(1), close).await.ok();
    }
}

/// DATA frames to the client.
struct StreamSink {
    session: Arc<Session>,
    stream: Arc<Stream>,
}

impl Sink for StreamSink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(bytes.len() <= COPY_BUFFER);
        self.session.send_data(&self.stream, bytes, false).await
    }
}
