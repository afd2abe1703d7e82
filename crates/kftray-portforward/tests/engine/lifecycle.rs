//! Start, recovery and stop, most of it on a paused clock.

use std::time::Duration;

use kftray_commons::{Code, Status};
use kftray_portforward::ports::{Condition, Delivery, Resolution};
use kftray_portforward::{Event, Forward};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, advance, timeout};

use crate::sim::{App, Manner, PATIENCE, Sim, config, connect, problem, ready, until_status};

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

async fn until_no_task_is_left() {
    let wait = async {
        while alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("no task outlives its forward");
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_whole_story_in_order() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let counters = forward.stop(Duration::ZERO).await;
    let mut events = forward.events();
    let mut story = Vec::new();
    while let Ok(event) = events.try_recv() {
        story.push(match event {
            Event::Listening { addresses, .. } => {
                assert_eq!(addresses.len(), 1);
                "listening".to_owned()
            }
            Event::Status(status) => status.name().to_owned(),
            Event::Ready(via) => format!("ready by {} over {}", via.endpoint, via.transport),
            Event::ConnectionFailed { problem, .. } => problem.message,
            Event::Stopped { counters: last } => {
                assert_eq!(last, counters);
                "end".to_owned()
            }
            other @ (Event::Published { .. }
            | Event::Called(_)
            | Event::CallFailed { .. }
            | Event::Note(_)) => format!("{other:?}"),
        });
    }
    let expected =
        ["binding", "listening", "resolving", "ready by ns/a:80 over sim", "ready", "stopping", "end"];
    assert_eq!(story, expected);
    assert!(forward.addresses().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_busy_port_needs_a_person_and_a_retry_helps() {
    let sim = Sim::with(App::Echo, &["a"]);
    let engine = sim.engine();
    let first = ready(&engine, config()).await;
    let port = first.addresses()[0].port().try_into().ok();
    let second = engine.start(kftray_portforward::ForwardConfig { local_port: port, ..config() });
    let Status::NeedsUser { cause } = until_status(&second, "needs_user").await else { unreachable!() };
    assert_eq!(cause.code, Code::PortInUse);
    first.stop(Duration::ZERO).await;
    second.retry();
    until_status(&second, "ready").await;
}

#[tokio::test(start_paused = true)]
async fn recovery_backs_off_and_a_wake_up_cuts_it_short() {
    let sim = Sim::with(App::Echo, &["a"]);
    let engine = sim.engine();
    let forward = ready(&engine, config()).await;
    sim.change("a", |pod| pod.manner = Manner::Fail(Code::ClusterUnreachable, Delivery::Nothing));
    sim.break_pod("a");
    until_status(&forward, "recovering").await;
    // Long enough that the wait is at its longest.
    tokio::time::sleep(Duration::from_secs(180)).await;
    let tries = sim.seen().warms;
    assert!((8..=20).contains(&tries), "1+2+4+8+16+30+30... with jitter: {tries}");
    let status = forward.status().borrow().clone();
    let Status::Recovering { attempt, cause, .. } = status else { panic!("{status:?}") };
    assert!(attempt >= 6, "{attempt}");
    assert_eq!(cause.code, Code::ClusterUnreachable);

    sim.change("a", |pod| pod.manner = Manner::Serve);
    let before = Instant::now();
    engine.network_changed();
    until_status(&forward, "ready").await;
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(sim.seen().network_changes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_needs_a_person_until_something_changes() {
    let sim = Sim::with(App::Echo, &["a"]);
    sim.change("a", |pod| pod.manner = Manner::Fail(Code::Forbidden, Delivery::Nothing));
    let forward = sim.engine().start(config());
    until_status(&forward, "needs_user").await;
    let tries = sim.seen().warms;
    advance(Duration::from_secs(3_600)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.seen().warms, tries, "no retry without a change");
    sim.change("a", |pod| pod.manner = Manner::Serve);
    sim.resolution.send_replace(Resolution::Failed(problem(Code::KubeconfigInvalid)));
    tokio::time::sleep(Duration::from_millis(1)).await;
    sim.publish();
    until_status(&forward, "ready").await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_look_up_ends_readiness_and_its_cure_brings_it_back() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    for (code, name) in [
        (Code::ClusterUnreachable, "recovering"),
        (Code::TargetMissing, "recovering"),
        (Code::ContextMissing, "needs_user"),
    ] {
        sim.resolution.send_replace(Resolution::Failed(problem(code)));
        let status = until_status(&forward, name).await;
        assert_eq!(status.problem().map(|problem| problem.code), Some(code));
        sim.publish();
        until_status(&forward, "ready").await;
    }
    sim.resolution.send_replace(Resolution::Pending);
    assert_eq!(until_status(&forward, "resolving").await.problem(), None, "another cluster, a new beginning");
}

#[tokio::test(start_paused = true)]
async fn it_moves_to_another_pod_without_leaving_ready() {
    let sim = Sim::with(App::Echo, &["a", "b"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut status = forward.status();
    status.mark_unchanged();
    let via = |forward: &Forward| forward.snapshot().ready.map(|ready| ready.endpoint.pod.to_string());
    assert_eq!(via(&forward).as_deref(), Some("a"));
    sim.change("a", |pod| pod.condition = Condition::Draining);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(via(&forward).as_deref(), Some("b"));
    assert!(!status.has_changed().expect("alive"));
}

/// Every way in which a connection can be stuck when the forward is stopped.
#[tokio::test]
async fn a_stop_never_waits_for_the_cluster() {
    for stuck in ["held", "dialling", "black hole", "open", "warming"] {
        let sim = Sim::with(App::Silent, &["a"]);
        let engine = sim.engine();
        if stuck == "warming" {
            sim.change("a", |pod| pod.manner = Manner::Hang);
        }
        let forward = engine.start(config());
        until_status(&forward, if stuck == "warming" { "resolving" } else { "ready" }).await;
        match stuck {
            "held" => sim.change("a", |pod| pod.condition = Condition::NotReady),
            "dialling" => sim.change("a", |pod| pod.manner = Manner::Hang),
            "black hole" => {
                sim.change("a", |pod| pod.manner = Manner::Hang);
                sim.break_pod("a");
            }
            _ => {}
        }
        while forward.addresses().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut client = connect(&forward).await;
        client.write_all(b"x").await.expect("write");
        while forward.counters().open == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = Instant::now();
        forward.stop(Duration::ZERO).await;
        assert!(before.elapsed() < Duration::from_secs(5), "{stuck}: {:?}", before.elapsed());
        assert_eq!(*forward.status().borrow(), Status::Stopped);
        let ended = timeout(PATIENCE, client.read_u8()).await.expect("in time");
        assert!(ended.is_err(), "{stuck}");
        // Only the simulated pods' tasks may remain, and they hang on the simulation.
        drop((forward, engine, sim));
        until_no_task_is_left().await;
    }
}

#[tokio::test]
async fn grace_lets_a_connection_finish() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    client.write_all(b"x").await.expect("write");
    client.read_u8().await.expect("echo");
    let finish = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.write_all(b"y").await.expect("write");
        let echoed = client.read_u8().await;
        drop(client);
        echoed
    };
    let before = Instant::now();
    let (counters, echoed) = tokio::join!(forward.stop(Duration::from_secs(60)), finish);
    assert_eq!(echoed.expect("still served"), b'y');
    assert!(before.elapsed() < PATIENCE);
    assert_eq!((counters.open, counters.bytes_up), (0, 2));
}

#[tokio::test]
async fn stopping_right_after_the_start_and_twice_is_harmless() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = sim.engine().start(config());
    forward.stop(Duration::ZERO).await;
    forward.stop(Duration::ZERO).await;
    assert_eq!(*forward.status().borrow(), Status::Stopped);
    let mut events = forward.events();
    let mut ends = 0;
    while let Ok(event) = events.try_recv() {
        ends += usize::from(matches!(event, Event::Stopped { .. }));
    }
    assert_eq!(ends, 1);
}

#[tokio::test]
async fn dropping_the_handle_ends_everything() {
    let sim = Sim::with(App::Silent, &["a"]);
    let engine = sim.engine();
    let forward = ready(&engine, config()).await;
    let address = forward.addresses()[0];
    let mut client = connect(&forward).await;
    client.write_all(b"x").await.expect("write");
    sim.until("the stream", |seen| seen.live == 1).await;
    drop(forward);
    assert!(timeout(PATIENCE, client.read_u8()).await.expect("in time").is_err());
    sim.until("the end", |seen| seen.live == 0).await;
    drop((engine, sim));
    until_no_task_is_left().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is free");
}

#[tokio::test]
async fn a_panic_of_the_supervisor_is_told_and_a_stop_still_works() {
    let sim = Sim::with(App::Echo, &["a"]);
    sim.change("a", |pod| pod.manner = Manner::Panic);
    let forward = sim.engine().start(config());
    let Status::NeedsUser { cause } = until_status(&forward, "needs_user").await else { unreachable!() };
    assert_eq!(cause.code, Code::Internal);
    forward.stop(Duration::ZERO).await;
    assert_eq!(*forward.status().borrow(), Status::Stopped);
}

#[derive(Debug, Clone)]
enum Fault {
    Manner(Manner),
    Condition(Condition),
    Break,
    Replace,
    Resolution(Code),
    Pending,
    Wake,
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Manner(Manner::Hang)),
        Just(Fault::Manner(Manner::Serve)),
        Just(Fault::Manner(Manner::Fail(Code::ClusterUnreachable, Delivery::Nothing))),
        Just(Fault::Manner(Manner::Fail(Code::Forbidden, Delivery::Nothing))),
        prop::sample::select(vec![Condition::Ready, Condition::Draining, Condition::NotReady])
            .prop_map(Fault::Condition),
        Just(Fault::Break),
        Just(Fault::Replace),
        prop::sample::select(vec![Code::ClusterUnreachable, Code::Unauthorized, Code::TargetMissing])
            .prop_map(Fault::Resolution),
        Just(Fault::Pending),
        Just(Fault::Wake),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The whole engine on a paused clock: whatever happens to the cluster, soon after it is well again the forward is
    /// ready; then it stops within a second and leaves no task behind.
    #[test]
    fn ready_soon_after_the_last_fault(
        script in prop::collection::vec((any_fault(), 0u64..40_000, 0usize..2), 0..25)
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let sim = Sim::with(App::Echo, &["a", "b"]);
            let engine = sim.engine();
            let forward = engine.start(config());
            for (fault, pause, pod) in script {
                let name = ["a", "b"][pod];
                match fault {
                    Fault::Manner(manner) => sim.change(name, |pod| pod.manner = manner),
                    Fault::Condition(condition) => sim.change(name, |pod| pod.condition = condition),
                    Fault::Break => sim.break_pod(name),
                    Fault::Replace => {
                        sim.remove(name);
                        sim.add(name, App::Echo);
                    }
                    Fault::Resolution(code) => {
                        sim.resolution.send_replace(Resolution::Failed(problem(code)));
                    }
                    Fault::Pending => {
                        sim.resolution.send_replace(Resolution::Pending);
                    }
                    Fault::Wake => engine.network_changed(),
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            for pod in ["a", "b"] {
                sim.change(pod, |pod| (pod.manner, pod.condition) = (Manner::Serve, Condition::Ready));
            }
            // A permission that was given is no news by itself: a person says so.
            forward.retry();
            let healed = Instant::now();
            until_status(&forward, "ready").await;
            // An attempt that hangs since before the cure has a limit of a minute; then comes at most the longest wait.
            assert!(healed.elapsed() <= Duration::from_secs(91), "{:?}", healed.elapsed());
            let before = Instant::now();
            forward.stop(Duration::from_secs(5)).await;
            assert!(before.elapsed() < Duration::from_secs(1));
            drop((forward, engine, sim));
            until_no_task_is_left().await;
        });
    }
}
