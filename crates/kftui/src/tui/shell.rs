//! The loop: waits for whatever comes first, lets the model take it in, does what it wishes, shows it.
//!
//! Nothing here blocks and nothing polls: with no key, no news and nothing that moves by itself, it sleeps.

use std::io;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyEventKind, MouseButton, MouseEvent, MouseEventKind};
use futures::StreamExt as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kftray_client::{Client, Follow, State};
use kftray_commons::Problem;
use kftray_commons::store::Directory;
use kftray_host::Host;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::effects;
use super::link::{self, Linked};
use super::message::{Effect, Gesture, Message, Now, Outcome};
use super::model::Model;
use super::terminal::Screen;
use super::theme::Surroundings;
use super::update::{settle, update};
use super::view::Hits;
use crate::signals::{Signal, Signals};

/// News of the host are shown at most this often; keys at once.
const FRAME: Duration = Duration::from_millis(33);

/// Most events that are taken in before the next picture, so that a flood of them is still seen going by.
const AT_ONCE: usize = 256;

/// Runs the window until somebody closes it.
pub(super) async fn run(directory: Directory, embedded: bool) -> io::Result<()> {
    let mut signals = Signals::install()?;
    let mut screen = Screen::open()?;
    let mut shell = Shell::new(screen.size()?);
    let mut events = EventStream::new();
    let mut linking = std::pin::pin!(link::link(directory, embedded));
    let mut unlinked = true;
    while !shell.ended {
        let wake = shell.wake();
        let due = shell.is_due();
        if due && shell.untold >= AT_ONCE {
            shell.draw(&mut screen)?;
            continue;
        }
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::Resumed => {
                    screen.reopen()?;
                    shell.dirty = true;
                    shell.urgent = true;
                }
                Signal::Interrupt | Signal::Terminate | Signal::Hangup => break,
            },
            // Polled by this task only: the stream remembers the first waker it was given.
            event = events.next() => match event {
                Some(event) => shell.event(event?, &mut screen),
                // Standard input is gone: so is whoever looks.
                None => break,
            },
            Some(done) = shell.tasks.join_next() => match done {
                Ok(Some(outcome)) => shell.take(Message::Done(outcome), &mut screen),
                Ok(None) => {}
                // Nothing is cancelled before the end; what panicked ends the window, whose terminal is given back by now.
                Err(error) => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            },
            state = next_state(&mut shell.follow) => shell.hear(state, &mut screen),
            linked = &mut linking, if unlinked => {
                unlinked = false;
                shell.linked(linked, &mut screen);
            }
            // Only when nothing else is there to be taken in.
            () = std::future::ready(()), if due => shell.draw(&mut screen)?,
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                if shell.wake_is_tick() {
                    shell.take(Message::Tick, &mut screen);
                }
                shell.urgent = true;
            }
        }
    }
    drop(screen);
    shell.follow = None;
    if let Some(host) = shell.host.take() {
        host.stop().await;
    }
    Ok(())
}

async fn next_state(follow: &mut Option<Follow>) -> State {
    match follow {
        Some(follow) => follow.changed().await,
        None => std::future::pending().await,
    }
}

struct Shell {
    model: Model,
    started: Instant,
    client: Option<Client>,
    /// A host that lives in this process, for as long as this value does.
    host: Option<Host>,
    follow: Option<Follow>,
    tasks: JoinSet<Option<Outcome>>,
    hits: Hits,
    dirty: bool,
    /// To be shown at once: somebody waits for it.
    urgent: bool,
    drawn_at: Instant,
    /// Messages taken in since then.
    untold: usize,
    ended: bool,
}

impl Shell {
    fn new(size: (u16, u16)) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let surroundings = Surroundings::of(
            variable("NO_COLOR").as_deref(),
            variable("TERM").as_deref(),
            variable("COLORFGBG").as_deref(),
        );
        let home = std::env::home_dir().map(|home| home.display().to_string());
        let model = Model::new(size, surroundings, TimeZone::system(), home);
        let started = Instant::now();
        Self {
            model,
            started,
            client: None,
            host: None,
            follow: None,
            tasks: JoinSet::new(),
            hits: Hits::default(),
            dirty: true,
            urgent: true,
            drawn_at: started,
            untold: 0,
            ended: false,
        }
    }

    fn now(&self) -> Now {
        let wall = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        Now { at: self.started.elapsed(), wall }
    }

    fn is_due(&self) -> bool {
        self.dirty && (self.urgent || self.drawn_at.elapsed() >= FRAME)
    }

    fn draw(&mut self, screen: &mut Screen) -> io::Result<()> {
        let wishes = settle(&mut self.model);
        self.wish(wishes, screen);
        self.hits = screen.draw(&self.model)?;
        self.drawn_at = Instant::now();
        self.dirty = false;
        self.urgent = false;
        self.untold = 0;
        Ok(())
    }

    /// When to go on without anything happening.
    fn wake(&self) -> Option<Instant> {
        let frame = self.dirty.then(|| self.drawn_at + FRAME);
        let tick = self.model.deadline().map(|deadline| self.started + deadline);
        [frame, tick].into_iter().flatten().min()
    }

    fn wake_is_tick(&self) -> bool {
        self.model.deadline().is_some_and(|deadline| self.started + deadline <= Instant::now())
    }

    fn take(&mut self, message: Message, screen: &mut Screen) {
        self.dirty = true;
        self.untold += 1;
        self.urgent |= !matches!(message, Message::Host(_));
        let now = self.now();
        let wishes = update(&mut self.model, message, now);
        self.wish(wishes, screen);
    }

    fn wish(&mut self, wishes: Vec<Effect>, screen: &mut Screen) {
        for wish in wishes {
            if wish == Effect::Quit {
                self.ended = true;
            } else if let Effect::Copy(text) = wish {
                if let Err(error) = screen.copy(&text) {
                    tracing::debug!(%error, "nothing was copied");
                }
            } else {
                self.tasks.spawn(effects::run(self.client.clone(), wish));
            }
        }
    }

    fn hear(&mut self, state: State, screen: &mut Screen) {
        self.take(Message::Host(Box::new(state)), screen);
    }

    fn linked(&mut self, linked: Result<Linked, Problem>, screen: &mut Screen) {
        match linked {
            Ok(Linked { client, host, because }) => {
                let follow = client.follow();
                self.client = Some(client);
                self.host = host;
                self.hear(follow.state(), screen);
                self.follow = Some(follow);
                if let Some(problem) = because {
                    self.take(Message::Embedded(problem), screen);
                }
            }
            Err(problem) => self.take(Message::NoHost(problem), screen),
        }
    }

    fn event(&mut self, event: Event, screen: &mut Screen) {
        let message = match event {
            // Some terminals tell that a key was let go, too.
            Event::Key(key) if key.kind == KeyEventKind::Release => return,
            Event::Key(key) => Message::Key(key),
            Event::Paste(text) => Message::Paste(text),
            Event::Resize(width, height) => Message::Size(width, height),
            Event::Mouse(mouse) => match gesture(mouse) {
                Some(gesture) => Message::Mouse(gesture, self.hits.at(mouse.column, mouse.row)),
                None => return,
            },
            Event::FocusGained | Event::FocusLost => return,
        };
        self.take(message, screen);
    }
}

fn gesture(mouse: MouseEvent) -> Option<Gesture> {
    match mouse.kind {
        MouseEventKind::Down(MouseButton::Left) => Some(Gesture::Click),
        MouseEventKind::ScrollUp => Some(Gesture::Up),
        MouseEventKind::ScrollDown => Some(Gesture::Down),
        MouseEventKind::Down(_)
        | MouseEventKind::Up(_)
        | MouseEventKind::Drag(_)
        | MouseEventKind::Moved
        | MouseEventKind::ScrollLeft
        | MouseEventKind::ScrollRight => None,
    }
}
