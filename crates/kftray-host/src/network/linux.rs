//! Linux: a netlink socket that hears of interfaces, addresses and routes (rtnetlink(7)), and a timer that is cancelled
//! when the clock jumps, which a resume does (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::sync::mpsc;

use super::Hint;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`
/// (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Interfaces of containers and virtual machines on this machine: they come and go all day and no cluster is behind them
/// that would have to be redialled.
const LOCAL_ONLY: [&str; 9] = ["veth", "docker", "br-", "virbr", "cni", "flannel", "cali", "lxc", "vmnet"];

/// A sleep shorter than this hurts no connection; corrections of the clock do not show here at all.
const SLEPT: Duration = Duration::from_secs(2);

/// A time that never comes, so that the timer only ever ends by a jump of the clock: the year 2200.
const NEVER: i64 = 7_258_118_400;

/// Hints that wait: they only say that something happened, so that more would say no more.
const WAITING: usize = 8;

/// What the kernel says.
pub(super) struct Hints {
    /// listening thread --Hint--> host
    heard: mpsc::Receiver<Hint>,
    /// Its end wakes the thread for the last time.
    _stop: UnixStream,
}

impl Hints {
    /// Starts to listen, on a thread that sleeps in the kernel: the runtime takes such handles only by unsafe calls.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 of this family is NETLINK_ROUTE.
        let routes = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&routes, &SocketAddrNetlink::new(0, GROUPS))?;
        let clock = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        arm(&clock)?;
        let (stop, stopped) = UnixStream::pair()?;
        let (heard_tx, heard) = mpsc::channel(WAITING);
        let ears = Ears { routes, clock, stopped, asleep: asleep() };
        std::thread::Builder::new().name("network".to_owned()).spawn(move || {
            if let Err(error) = ears.listen(&heard_tx) {
                tracing::warn!(%error, "the kernel says no more about the network");
            }
        })?;
        Ok(Self { heard, _stop: stop })
    }

    /// Waits for the next word. Cancel-safe.
    pub(super) async fn next(&mut self) -> Hint {
        match self.heard.recv().await {
            Some(hint) => hint,
            None => std::future::pending().await,
        }
    }
}

/// The listening thread's side.
struct Ears {
    routes: OwnedFd,
    clock: OwnedFd,
    stopped: UnixStream,
    asleep: Duration,
}

impl Ears {
    /// Until the other side is gone.
    fn listen(mut self, heard: &mpsc::Sender<Hint>) -> io::Result<()> {
        loop {
            let mut ends = [
                PollFd::new(&self.stopped, PollFlags::IN),
                PollFd::new(&self.routes, PollFlags::IN),
                PollFd::new(&self.clock, PollFlags::IN),
            ];
            match poll(&mut ends, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [stopped, routes, clock] = ends.map(|end| !end.revents().is_empty());
            if stopped {
                return Ok(());
            }
            let tell = |hint| {
                // With some waiting already it is known that something happened.
                heard.try_send(hint).ok();
            };
            if routes {
                drain(&self.routes)?;
                tell(Hint::Network);
            }
            if clock && jumped(&self.clock)? {
                let before = std::mem::replace(&mut self.asleep, asleep());
                if self.asleep.saturating_sub(before) >= SLEPT {
                    tell(Hint::Woke);
                }
            }
        }
    }
}

/// Throws the messages away: that they came is all that matters.
fn drain(routes: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0_u8; 8192];
    loop {
        let buffer: &mut [u8] = &mut buffer;
        match recv(routes, buffer, RecvFlags::empty()) {
            // More came than the kernel keeps: that is a word, too.
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the clock has jumped; the timer runs again afterwards.
fn jumped(clock: &OwnedFd) -> io::Result<bool> {
    let mut count = [0_u8; 8];
    let count: &mut [u8] = &mut count;
    match rustix::io::read(clock, count) {
        Err(Errno::CANCELED) => arm(clock).map(|()| true),
        // The year 2200, or nothing.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn arm(clock: &OwnedFd) -> io::Result<()> {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let never = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: NEVER, tv_nsec: 0 } };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(clock, flags, &never)?;
    Ok(())
}

/// How long this machine has slept since it was started.
fn asleep() -> Duration {
    let elapsed = |clock| {
        let time = clock_gettime(clock);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or_default(),
            u32::try_from(time.tv_nsec).unwrap_or_default(),
        )
    };
    elapsed(ClockId::Boottime).saturating_sub(elapsed(ClockId::Monotonic))
}

/// Addresses and routes of this machine's real interfaces, in a stable order.
pub(super) fn fingerprint() -> Vec<String> {
    let mut lines: Vec<String> = addresses().collect();
    for table in ["/proc/net/route", "/proc/net/ipv6_route"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        lines.extend(routes(&text));
    }
    lines.sort();
    lines.dedup();
    lines
}

fn addresses() -> impl Iterator<Item = String> {
    let all = getifaddrs().into_iter().flatten();
    all.filter_map(|entry| {
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        if !entry.flags.contains(up) || !counts(&entry.interface_name) {
            return None;
        }
        let address = entry.address?;
        let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (None, Some(v6)) => v6.ip().into(),
            (None, None) => return None,
        };
        Some(format!("{} {ip}", entry.interface_name))
    })
}

/// Routes of a table of the kernel: `/proc/net/route` begins a line with the interface, `/proc/net/ipv6_route` ends it so.
/// Counters of use, which change all the time, are left out.
fn routes(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (interface, route) = match fields[..] {
                // Iface Destination Gateway Flags RefCnt Use Metric Mask ...
                [interface, destination, gateway, _, _, _, metric, mask, ..] if destination.len() == 8 => {
                    (interface, [destination, mask, gateway, metric].join(" "))
                }
                // Destination Length Source Length NextHop Metric RefCnt Use Flags Iface
                [destination, length, _, _, next, metric, _, _, _, interface] if destination.len() == 32 => {
                    (interface, [destination, length, next, metric].join(" "))
                }
                _ => return None,
            };
            counts(interface).then(|| format!("{interface} {route}"))
        })
        .collect()
}

fn counts(interface: &str) -> bool {
    interface != "lo" && !LOCAL_ONLY.iter().any(|prefix| interface.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010011AC\t0003\t0\t7\t100\t00000000\t0\t0\t0\n\
        docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn use_of_a_route_and_containers_do_not_count() {
        let busier = ROUTES.replace("\t7\t", "\t9999\t");
        assert_eq!(routes(ROUTES), routes(&busier));
        assert_eq!(routes(ROUTES).len(), 1);
        let moved = ROUTES.replace("010011AC", "020011AC");
        assert_ne!(routes(ROUTES), routes(&moved));
        let six = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
            fe800000000000000000000000000001 00000400 00000001 00000003 00450003     eth0\n";
        assert_eq!(routes(six).len(), 1);
        assert_eq!(routes(&six.replace("eth0", "lo")).len(), 0);
    }

    #[tokio::test]
    async fn it_listens() {
        let mut hints = Hints::open().expect("netlink and timers are there");
        // Nothing is said; waiting for it must not fail or spin.
        let quiet = tokio::time::timeout(Duration::from_millis(50), hints.next()).await;
        drop(quiet);
        assert_eq!(fingerprint(), fingerprint());
    }
}
