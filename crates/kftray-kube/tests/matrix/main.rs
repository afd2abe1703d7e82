//! Every carrier against every fault, through everything that is real: local sockets, engine, watches, sessions, TLS.
//!
//! [`table`] says what is broken and what a person may notice of it; [`rig`] is the cluster, the forward and its clients;
//! here is the law that holds for every line of the table:
//!
//! 1. while the fault lasts, new connections fare as the table says, and no connection ever gets wrong bytes;
//! 2. a forward stops, fault or not, without waiting for the cluster;
//! 3. when the fault is over, a new connection through the *same* listener is served byte for byte, and the forward says
//!    that it is ready;
//! 4. nothing panics.
//!
//! The cases run a few at once, each with a cluster of its own. To run a part: `MATRIX=goaway` or `MATRIX=legacy` in the
//! environment (any part of `CARRIER: CASE`).

#[path = "../support/mod.rs"]
mod support;

mod rig;
mod table;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use rig::{BOUND, Rig};
use table::{Carrier, Case, Existing, Felt};

/// Cases at once. Most of a case is waiting, but two cores should not make a second out of a promise of milliseconds.
const AT_ONCE: usize = 12;
/// A case that takes longer hangs: the longest has a black hole noticed by its pings, and takes half of this.
const LIMIT: Duration = Duration::from_secs(40);
/// A forward promises to end within one second, which the engine's tests hold it to on a paused clock; here as many cases
/// as fit keep the machine busy, and time is what they make of it.
const STOP: Duration = Duration::from_secs(3);
/// What its connections are given to end by themselves.
const GRACE: Duration = Duration::from_millis(100);
/// Longer than the two seconds of silence after which a session is in doubt.
const IDLE: Duration = Duration::from_millis(2_300);
/// Traffic before a fault that hits a forward in use.
const WARM_UP: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_on_every_carrier() {
    let panics = gather_panics();
    let only = std::env::var("MATRIX").unwrap_or_default();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (carrier, case) in table::all() {
        let name = format!("{}: {}", carrier.as_str(), case.name);
        if !name.contains(&only) {
            continue;
        }
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire_owned().await;
            let begin = Instant::now();
            let result = timeout(LIMIT, law(carrier, &case)).await;
            let result = result.unwrap_or_else(|_| Err(format!("hangs for {LIMIT:?}")));
            let outcome = if result.is_ok() { "ok" } else { "FAILED" };
            println!("{outcome:6} {:5.1} s  {name}", begin.elapsed().as_secs_f32());
            result.map_err(|why| format!("{name}: {why}"))
        });
    }
    let count = running.len();
    assert!(count > 0, "no case is called {only}");
    let mut broken = Vec::new();
    while let Some(done) = running.join_next().await {
        match done {
            Ok(Ok(())) => {}
            Ok(Err(why)) => broken.push(why),
            Err(panic) => broken.push(panic.to_string()),
        }
    }
    broken.sort();
    broken.extend(panics.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
    assert!(broken.is_empty(), "{} faults in {count} cases:\n{}", broken.len(), broken.join("\n"));
}

/// Panics anywhere in the process, be it in a task whose end nobody looks at.
fn gather_panics() -> Arc<Mutex<Vec<String>>> {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let (gathered, before) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        gathered.lock().unwrap_or_else(PoisonError::into_inner).push(format!("panic: {info}"));
        before(info);
    }));
    panics
}

/// One line of the table on one carrier.
async fn law(carrier: Carrier, case: &Case) -> Result<(), String> {
    let felt = case.felt_on(carrier);
    let rig = Rig::start(carrier, case).await;
    let addresses = rig.forward.addresses();
    let bystander = rig.second_forward().await;
    let mut kept = rig.connect().await.map_err(|broken| format!("before the fault: {broken}"))?;
    rig::echo(&mut kept, 1, 100).await.map_err(|broken| format!("before the fault: {broken}"))?;
    if case.idle_before {
        sleep(IDLE).await;
    } else {
        rig.run_load();
        sleep(WARM_UP).await;
    }
    {
        // Connections that are under way are existing ones; the promise is for new ones.
        let _quiet = rig.quiet().await;
        (case.strike)(&rig).await;
    }
    rig.run_load();
    let (during, ()) = tokio::join!(while_it_lasts(&rig, felt), sleep(case.lasts));
    during?;
    stops(bystander).await.map_err(|why| format!("during the fault {why}"))?;

    rig.fake.faults().clear().await;
    (case.cure)(&rig).await;
    served_again(&rig, felt).await?;
    rig.becomes_ready().await.map_err(|()| format!("not ready {BOUND:?} after the fault: {rig:?}"))?;
    rig.end_load().await;
    match case.existing {
        Existing::Lives => {
            rig::echo(&mut kept, 4, 5_000).await.map_err(|why| format!("existing one: {why}"))?;
        }
        Existing::Ends => rig::ends(&mut kept).await.map_err(|()| "an existing connection goes on")?,
        Existing::Either => {}
    }
    rig.verdict(felt.allowed(), &kept)?;
    if rig.forward.addresses() != addresses {
        return Err("it listens elsewhere".to_owned());
    }
    drop(kept);
    let Rig { forward, .. } = rig;
    stops(forward).await
}

async fn while_it_lasts(rig: &Rig, felt: Felt) -> Result<(), String> {
    match (felt, timeout(BOUND, rig.probe(2, 20_000))) {
        (Felt::Nothing, probe) => match probe.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(broken)) => Err(format!("during the fault: {broken}; {rig:?}")),
            Err(_) => Err(format!("during the fault: not served within {BOUND:?}; {rig:?}")),
        },
        (Felt::Refusals(_), probe) => match probe.await {
            Ok(Err(_)) => Ok(()),
            Ok(Ok(())) => Err("served during the fault".to_owned()),
            Err(_) => Err(format!("during the fault: not told within {BOUND:?}; {rig:?}")),
        },
        // What becomes of them shows when it is over.
        (Felt::Delay | Felt::Losses(_), _) => Ok(()),
    }
}

async fn served_again(rig: &Rig, felt: Felt) -> Result<(), String> {
    let attempts = async {
        loop {
            match (rig.probe(3, 300_000).await, felt) {
                (Ok(()), _) => return Ok(()),
                (Err(broken), Felt::Nothing | Felt::Delay) => return Err(broken),
                // Where connections may fail, the first new one may be early.
                (Err(_), Felt::Losses(_) | Felt::Refusals(_)) => sleep(Duration::from_millis(100)).await,
            }
        }
    };
    match timeout(BOUND, attempts).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(broken)) => Err(format!("after the fault: {broken}; {rig:?}")),
        Err(_) => Err(format!("not served {BOUND:?} after the fault: {rig:?}")),
    }
}

async fn stops(forward: kftray_portforward::Forward) -> Result<(), String> {
    let begin = Instant::now();
    forward.stop(GRACE).await;
    let took = begin.elapsed();
    if took > STOP { Err(format!("the stop took {took:?}")) } else { Ok(()) }
}
