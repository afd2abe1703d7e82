//! Moves bytes between the local socket and a channel, both directions in one future without locks.
//!
//! A connection that idles holds no buffer: one is taken only after the socket has said that there is something to read,
//! and is given back when there is no more. Chunks from the channel are written as they came, several in one system call.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use socket2::{SockRef, Socket};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::client::Client;
use crate::counters::Tally;
use crate::platform;
use crate::ports::{Channel, ChannelError};

/// Bounds of one read from the local socket. The lower one suits interactive traffic, the upper one is where larger reads
/// no longer lower the cost per byte; the size follows what arrives.
const READ_SIZES: (usize, usize) = (4 * 1024, 64 * 1024);

/// How many bytes wait for the local socket before the channel is left alone. More than one write can take, so that the
/// socket never runs dry; the channel's own budget does the rest.
const DOWN_LIMIT: usize = 256 * 1024;

/// Chunks per write: as many as one call takes on every system (`IOV_MAX` is 1,024 on Linux) times a reasonable array.
const DOWN_SLICES: usize = 64;

/// Rounds of one direction in one poll; then other connections of the thread have their turn.
const ROUNDS: usize = 16;

/// What has just happened to a connection that its owner must decide about.
#[derive(Debug)]
pub(crate) enum Turn {
    /// The client will send no more; the answer may still come.
    ClientFinished,
    /// The first byte from the pod has come.
    FirstByte,
    /// The pod has ended, and its last byte is written and the end told. The client may still send.
    PodFinished,
    /// Both have ended.
    Finished,
    /// The local socket is gone.
    ClientGone(io::Error),
    /// The channel has failed.
    Failed(ChannelError),
}

/// One connection in motion.
pub(crate) struct Pump<'a> {
    client: &'a mut Client,
    channel: &'a mut dyn Channel,
    tally: &'a Tally,
    buffer: BytesMut,
    read_size: usize,
    down: VecDeque<Bytes>,
    down_bytes: usize,
    answered: bool,
    written: u64,
    client_finished: bool,
    pod: PodSide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PodSide {
    Open,
    /// It has ended; bytes from it are still to be written.
    Ended,
    /// The client has been told.
    Told,
}

impl<'a> Pump<'a> {
    pub(crate) fn new(client: &'a mut Client, channel: &'a mut dyn Channel, tally: &'a Tally) -> Self {
        Self {
            client,
            channel,
            tally,
            buffer: BytesMut::new(),
            read_size: READ_SIZES.0,
            down: VecDeque::new(),
            down_bytes: 0,
            answered: false,
            written: 0,
            client_finished: false,
            pod: PodSide::Open,
        }
    }

    /// Moves bytes until something happens that is not just bytes. To be called again after [`Turn::ClientFinished`],
    /// [`Turn::FirstByte`] and, where the client may go on, [`Turn::PodFinished`]. Cancel-safe.
    pub(crate) async fn turn(&mut self) -> Turn {
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    /// The client's state, between turns.
    pub(crate) fn client(&self) -> &Client {
        self.client
    }

    /// Whether the pod has sent anything.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// Bytes written to the client so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        // Down first: answers free the pod's and the session's memory.
        if let Poll::Ready(turn) = self.poll_down(cx) {
            return Poll::Ready(turn);
        }
        self.poll_up(cx)
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        for _ in 0..ROUNDS {
            if self.client.sent.waits() {
                if let Err(error) = ready!(self.channel.poll_send_ready(cx)) {
                    return Poll::Ready(Turn::Failed(error));
                }
                if let Some(chunk) = self.client.sent.give() {
                    self.channel.send(chunk);
                }
                continue;
            }
            if self.client.eof {
                return self.finish_up();
            }
            // The client first: an idle connection asks nobody for room.
            if let Err(error) = ready!(self.client.stream.poll_read_ready(cx)) {
                return Poll::Ready(Turn::ClientGone(error));
            }
            if let Err(error) = ready!(self.channel.poll_send_ready(cx)) {
                return Poll::Ready(Turn::Failed(error));
            }
            match self.read() {
                Ok(Some(chunk)) => {
                    self.tally.up(chunk.len(), Instant::now());
                    self.client.sent.pass(&chunk);
                    self.channel.send(chunk);
                }
                Ok(None) => self.client.eof = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.buffer = BytesMut::new(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Turn::ClientGone(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn finish_up(&mut self) -> Poll<Turn> {
        if self.client_finished {
            return Poll::Pending;
        }
        self.client_finished = true;
        self.buffer = BytesMut::new();
        self.channel.finish();
        Poll::Ready(match self.pod {
            PodSide::Told => Turn::Finished,
            PodSide::Open | PodSide::Ended => Turn::ClientFinished,
        })
    }

    /// One read, with a buffer whose size follows what arrives; `None` at the end.
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        if self.buffer.capacity() < READ_SIZES.0.min(self.read_size) {
            self.buffer = BytesMut::with_capacity(self.read_size);
        }
        let room = self.buffer.capacity();
        let length = self.client.stream.try_read_buf(&mut self.buffer)?;
        if length == 0 {
            return Ok(None);
        }
        if length == room {
            self.read_size = (self.read_size * 2).min(READ_SIZES.1);
        } else if length < self.read_size / 8 {
            self.read_size = (self.read_size / 2).max(READ_SIZES.0);
        }
        Ok(Some(self.buffer.split().freeze()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        for _ in 0..ROUNDS {
            if let Poll::Ready(turn) = self.fill_down(cx) {
                return Poll::Ready(turn);
            }
            if self.down.is_empty() {
                return match self.pod {
                    PodSide::Ended => self.poll_tell(cx),
                    PodSide::Open | PodSide::Told => Poll::Pending,
                };
            }
            if let Err(error) = ready!(self.client.stream.poll_write_ready(cx)) {
                return Poll::Ready(Turn::ClientGone(error));
            }
            match self.write() {
                Ok(length) => {
                    self.written += length as u64;
                    self.tally.down(length, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Turn::ClientGone(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes chunks from the channel while there is room.
    fn fill_down(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        while self.pod == PodSide::Open && self.down_bytes < DOWN_LIMIT && self.down.len() < DOWN_SLICES {
            match self.channel.poll_recv(cx) {
                Poll::Ready(Ok(Some(chunk))) if chunk.is_empty() => {}
                Poll::Ready(Ok(Some(chunk))) => {
                    self.down_bytes += chunk.len();
                    self.down.push_back(chunk);
                    if !self.answered {
                        self.answered = true;
                        self.client.sent.close();
                        return Poll::Ready(Turn::FirstByte);
                    }
                }
                Poll::Ready(Ok(None)) => self.pod = PodSide::Ended,
                Poll::Ready(Err(error)) => {
                    self.give_rest();
                    return Poll::Ready(Turn::Failed(error));
                }
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// What came before a failure is the client's, as far as its socket takes it at once: an answer to an upload that is
    /// not read to its end comes together with the error. The socket itself is asked, since the runtime may not know yet
    /// that it is writable.
    fn give_rest(&mut self) {
        let mut socket: &Socket = &SockRef::from(&self.client.stream);
        self.down_bytes = 0;
        for chunk in std::mem::take(&mut self.down) {
            let Ok(length) = socket.write(&chunk) else { return };
            self.written += length as u64;
            self.tally.down(length, Instant::now());
            if length < chunk.len() {
                return;
            }
        }
    }

    /// One write of everything that waits, as far as the socket takes it.
    fn write(&mut self) -> io::Result<usize> {
        let length = {
            let mut slices = [IoSlice::new(&[]); DOWN_SLICES];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.down) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            let slices = slices.get(..count).unwrap_or_default();
            if self.pod == PodSide::Ended && count == self.down.len() {
                platform::write_last(&self.client.stream, slices)?
            } else {
                self.client.stream.try_write_vectored(slices)?
            }
        };
        self.down_bytes -= length;
        let mut rest = length;
        while rest > 0 {
            let Some(chunk) = self.down.front_mut() else { break };
            if chunk.len() > rest {
                chunk.advance(rest);
                break;
            }
            rest -= chunk.len();
            self.down.pop_front();
        }
        Ok(length)
    }

    /// Tells the client that the pod has ended.
    fn poll_tell(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let told = ready!(Pin::new(&mut self.client.stream).poll_shutdown(cx));
        self.pod = PodSide::Told;
        Poll::Ready(match told {
            Ok(()) if self.client_finished => Turn::Finished,
            Ok(()) => Turn::PodFinished,
            Err(error) => Turn::ClientGone(error),
        })
    }
}
