//! What the system and the person at the keyboard tell this process.

use std::io;

/// A signal that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Asked to end.
    Terminate,
    /// The terminal is gone.
    Hangup,
    /// The process runs again after it was stopped: whatever was connected may be dead.
    Resumed,
}

pub(crate) use platform::Signals;

#[cfg(unix)]
mod platform {
    use tokio::signal::unix::{self, SignalKind};

    use super::{Signal, io};

    /// The streams of signals. While it lives, none of them ends the process by itself.
    #[derive(Debug)]
    pub(crate) struct Signals {
        interrupt: unix::Signal,
        terminate: unix::Signal,
        hangup: unix::Signal,
        resumed: unix::Signal,
    }

    impl Signals {
        pub(crate) fn install() -> io::Result<Self> {
            let resumed = SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32);
            Ok(Self {
                interrupt: unix::signal(SignalKind::interrupt())?,
                terminate: unix::signal(SignalKind::terminate())?,
                hangup: unix::signal(SignalKind::hangup())?,
                resumed: unix::signal(resumed)?,
            })
        }

        /// The next signal. Safe to drop and call again.
        pub(crate) async fn next(&mut self) -> Signal {
            tokio::select! {
                Some(()) = self.interrupt.recv() => Signal::Interrupt,
                Some(()) = self.terminate.recv() => Signal::Terminate,
                Some(()) = self.hangup.recv() => Signal::Hangup,
                Some(()) = self.resumed.recv() => Signal::Resumed,
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(windows)]
mod platform {
    use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};

    use super::{Signal, io};

    /// What the console and the system send. While it lives, none of it ends the process by itself.
    #[derive(Debug)]
    pub(crate) struct Signals {
        interrupt: CtrlC,
        r#break: CtrlBreak,
        close: CtrlClose,
        shutdown: CtrlShutdown,
    }

    impl Signals {
        pub(crate) fn install() -> io::Result<Self> {
            Ok(Self {
                interrupt: windows::ctrl_c()?,
                r#break: windows::ctrl_break()?,
                close: windows::ctrl_close()?,
                shutdown: windows::ctrl_shutdown()?,
            })
        }

        /// The next signal. Safe to drop and call again.
        pub(crate) async fn next(&mut self) -> Signal {
            tokio::select! {
                Some(()) = self.interrupt.recv() => Signal::Interrupt,
                Some(()) = self.r#break.recv() => Signal::Terminate,
                Some(()) = self.shutdown.recv() => Signal::Terminate,
                Some(()) = self.close.recv() => Signal::Hangup,
                else => std::future::pending().await,
            }
        }
    }
}

impl Signal {
    /// Whether it asks the program to end.
    pub(crate) fn ends(self) -> bool {
        match self {
            Self::Interrupt | Self::Terminate | Self::Hangup => true,
            Self::Resumed => false,
        }
    }
}
