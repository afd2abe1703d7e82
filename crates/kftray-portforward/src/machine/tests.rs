//! The machine against a model of what must be under way, with random scripts, and against a simulated world.

use proptest::prelude::*;

use super::*;

fn problem(code: Code) -> Problem {
    Problem::new(code, code.as_str())
}

fn start_of_time() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What a well-behaved shell would have under way after the effects so far, and what the laws say about it. Written
/// from the design's words, without the machine's phases: only facts.
#[derive(Debug, Default)]
struct Model {
    running: bool,
    stopping: bool,
    listeners: bool,
    binding: bool,
    attempt: bool,
    transport: bool,
    supply_ready: bool,
    /// A person is needed, by the last answer of the listeners or of a transport.
    person: bool,
    status: Option<Status>,
    /// The highest attempt number told since the last proof of life.
    attempts: u32,
    up_since: Option<Instant>,
}

impl Model {
    /// Whether the shell could produce this input now; others are fed as noise and must change nothing.
    fn expects(&self, input: &Input) -> bool {
        match input {
            Input::Bound | Input::BindFailed(_) => self.binding,
            Input::WarmOk | Input::WarmFailed(_) => self.attempt,
            Input::TransportLost(_) => self.transport,
            Input::Drained => self.stopping,
            Input::Start
            | Input::Stop
            | Input::Supply(_)
            | Input::Timer
            | Input::NetworkChanged
            | Input::Retry
            | Input::Served => true,
        }
    }

    fn before(&mut self, input: &Input, now: Instant) {
        let stable = self.up_since.is_some_and(|since| now - since >= STABLE);
        match input {
            Input::Start if !self.running && !self.stopping => {
                *self = Self { running: true, supply_ready: self.supply_ready, ..Self::default() };
            }
            Input::Stop if self.running => (self.running, self.stopping) = (false, true),
            Input::Drained => self.stopping = false,
            Input::Bound => (self.binding, self.listeners) = (false, true),
            Input::BindFailed(problem) => {
                (self.binding, self.person) = (false, problem.code.cure() == Cure::User);
            }
            Input::Supply(supply) => {
                self.supply_ready = matches!(supply, Supply::Ready { .. });
                if self.listeners {
                    self.person = false;
                }
            }
            Input::WarmOk => {
                (self.attempt, self.transport, self.up_since) = (false, true, Some(now));
                self.person = false;
            }
            Input::WarmFailed(problem) => {
                (self.attempt, self.person) = (false, problem.code.cure() == Cure::User);
            }
            Input::TransportLost(problem) => {
                self.transport = false;
                self.person = problem.code.cure() == Cure::User && !self.attempt;
            }
            // Proof of life.
            Input::Served => self.attempts = 0,
            Input::Start | Input::Stop | Input::Timer | Input::NetworkChanged | Input::Retry => {}
        }
        if stable && (!self.transport || self.up_since == Some(now)) {
            self.attempts = 0;
        }
    }

    fn apply(&mut self, effects: &[Effect], now: Instant) {
        for effect in effects {
            match effect {
                Effect::Bind => {
                    assert!(!self.listeners && !self.binding, "one listener per address");
                    (self.binding, self.person) = (true, false);
                }
                Effect::Close => (self.listeners, self.binding) = (false, false),
                Effect::Warm => {
                    assert!(
                        self.listeners && self.supply_ready,
                        "an attempt needs listeners and a ready pod"
                    );
                    (self.attempt, self.person) = (true, false);
                }
                Effect::DropWarm => {
                    if self.up_since.is_some_and(|since| now - since >= STABLE) {
                        self.attempts = 0;
                    }
                    (self.attempt, self.transport, self.up_since) = (false, false, None);
                }
                Effect::Publish(status) => {
                    if let Status::Recovering { attempt, .. } = status {
                        assert!(*attempt >= self.attempts, "attempts never decrease before proof of life");
                        self.attempts = *attempt;
                    }
                    self.status = Some(status.clone());
                }
            }
        }
        if !self.transport {
            self.up_since = None;
        }
    }

    /// The laws that hold between any two inputs.
    fn check(&self, machine: &Machine, now: Instant) {
        let name = self.status.as_ref().map_or("stopped", Status::name);
        let deadline = machine.deadline();
        if !self.running {
            assert!(
                !self.listeners && !self.binding && !self.attempt && !self.transport,
                "stopped is stopped"
            );
            assert_eq!(deadline, None, "nothing is waited for after a stop");
            assert!(matches!(name, "stopped" | "stopping"), "{name}");
            return;
        }
        if let Some(deadline) = deadline {
            assert!(deadline <= now + ATTEMPT_LIMIT, "no wait is longer than the longest");
        }
        match (self.listeners, self.supply_ready) {
            (false, _) if self.binding => assert_eq!(name, "binding"),
            (false, _) if self.person => assert_eq!(name, "needs_user"),
            (false, _) => {
                assert_eq!(name, "recovering");
                assert!(deadline.is_some_and(|at| at <= now + backoff::LONGEST), "binding is tried again");
            }
            (true, false) => {
                assert!(!self.attempt && !self.transport, "no transport without a ready pod");
                assert_eq!(deadline, None, "the resolver is waited for, not a clock");
                assert!(matches!(name, "resolving" | "recovering" | "needs_user"), "{name}");
            }
            (true, true) if self.transport => assert_eq!(name, "ready"),
            (true, true) if self.attempt => {
                assert!(matches!(name, "resolving" | "recovering"), "{name}");
                assert!(deadline.is_some(), "an attempt has a limit");
            }
            (true, true) if self.person => {
                assert_eq!((name, deadline), ("needs_user", None));
            }
            (true, true) => {
                assert_eq!(name, "recovering");
                assert!(deadline.is_some_and(|at| at <= now + backoff::LONGEST), "it is tried again");
            }
        }
    }
}

fn any_problem() -> impl Strategy<Value = Problem> {
    prop::sample::select(vec![
        Code::ClusterUnreachable,
        Code::ConnectionLost,
        Code::PodGone,
        Code::NoReadyPods,
        Code::Forbidden,
        Code::Unauthorized,
        Code::TooManyFiles,
        Code::PortInUse,
    ])
    .prop_map(problem)
}

fn any_supply() -> impl Strategy<Value = Supply> {
    prop_oneof![
        1 => Just(Supply::Pending),
        4 => any::<bool>().prop_map(|chosen| Supply::Ready { chosen }),
        1 => prop::option::of(any_problem()).prop_map(Supply::Empty),
        1 => any_problem().prop_map(Supply::Failed),
    ]
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        3 => Just(Input::Start),
        1 => Just(Input::Stop),
        4 => Just(Input::Bound),
        1 => any_problem().prop_map(Input::BindFailed),
        6 => any_supply().prop_map(Input::Supply),
        6 => Just(Input::WarmOk),
        6 => any_problem().prop_map(Input::WarmFailed),
        4 => any_problem().prop_map(Input::TransportLost),
        6 => Just(Input::Timer),
        1 => Just(Input::NetworkChanged),
        1 => Just(Input::Retry),
        2 => Just(Input::Served),
        1 => Just(Input::Drained),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    /// Any inputs, noise included, at any pace: the laws hold after each.
    #[test]
    fn laws_hold_under_any_script(
        script in prop::collection::vec((any_input(), 0u64..45_000, 0.0..1.0f64), 1..80)
    ) {
        let (mut machine, mut model, mut now) = (Machine::new(), Model::default(), start_of_time());
        for (input, pause, jitter) in script {
            now += Duration::from_millis(pause);
            if input == Input::Served && !machine.wants_proof() {
                let mut after = machine.clone();
                prop_assert!(after.step(Input::Served, now, jitter).is_empty());
                prop_assert_eq!(&after, &machine, "what is not asked for tells nothing");
            }
            if model.expects(&input) {
                model.before(&input, now);
                let effects = machine.step(input, now, jitter);
                model.apply(&effects, now);
            } else {
                let before = machine.clone();
                let effects = machine.step(input.clone(), now, jitter);
                prop_assert!(effects.is_empty(), "{input:?} was not expected and caused {effects:?}");
                prop_assert_eq!(&before, &machine);
            }
            model.check(&machine, now);
        }
    }
}

/// A world that answers effects: the port may be taken, the cluster may refuse, sessions may die.
#[derive(Debug, Clone)]
struct Fault {
    /// Milliseconds after the last one.
    after: u64,
    kind: FaultKind,
}

#[derive(Debug, Clone)]
enum FaultKind {
    Attempts(Option<Code>),
    Binding(Option<Code>),
    Supply(Supply),
    Lost,
    Hang(bool),
    Wake,
}

#[derive(Default)]
struct World {
    attempts_fail: Option<Code>,
    binding_fails: Option<Code>,
    hang: bool,
    binding: bool,
    attempt: Option<Instant>,
    transport: bool,
}

impl World {
    /// How long an answer takes.
    const ANSWER: Duration = Duration::from_millis(300);

    fn absorb(&mut self, effects: Vec<Effect>, now: Instant) {
        for effect in effects {
            match effect {
                Effect::Bind => self.binding = true,
                Effect::Warm => self.attempt = Some(now + Self::ANSWER),
                Effect::DropWarm => (self.attempt, self.transport) = (None, false),
                Effect::Close | Effect::Publish(_) => {}
            }
        }
    }

    /// The next thing that happens by itself, and when.
    fn next(&self, machine: &Machine, now: Instant) -> Option<(Instant, Input)> {
        if self.binding {
            return Some((
                now,
                self.binding_fails.map_or(Input::Bound, |code| Input::BindFailed(problem(code))),
            ));
        }
        let answer = self.attempt.filter(|_| !self.hang).map(|at| {
            (at.max(now), self.attempts_fail.map_or(Input::WarmOk, |code| Input::WarmFailed(problem(code))))
        });
        let timer = machine.deadline().map(|at| (at.max(now), Input::Timer));
        [answer, timer].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn feed(&mut self, machine: &mut Machine, input: Input, now: Instant, jitter: f64) {
        if matches!(input, Input::Bound | Input::BindFailed(_)) {
            self.binding = false;
        } else if input == Input::WarmOk {
            (self.attempt, self.transport) = (None, true);
        } else if matches!(input, Input::WarmFailed(_)) {
            self.attempt = None;
        }
        let effects = machine.step(input, now, jitter);
        self.absorb(effects, now);
    }

    fn run_until(&mut self, machine: &mut Machine, now: &mut Instant, until: Instant, jitter: f64) {
        for _ in 0..10_000 {
            match self.next(machine, *now) {
                Some((at, input)) if at <= until => {
                    *now = at;
                    self.feed(machine, input, at, jitter);
                }
                _ => {
                    *now = until;
                    return;
                }
            }
        }
        panic!("it runs in circles without time passing: {machine:?}");
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let codes = || {
        prop::option::of(prop::sample::select(vec![
            Code::ClusterUnreachable,
            Code::Forbidden,
            Code::PodGone,
            Code::TooManyFiles,
            Code::PortInUse,
        ]))
    };
    let kind = prop_oneof![
        3 => codes().prop_map(FaultKind::Attempts),
        1 => codes().prop_map(FaultKind::Binding),
        3 => any_supply().prop_map(FaultKind::Supply),
        3 => Just(FaultKind::Lost),
        1 => any::<bool>().prop_map(FaultKind::Hang),
        1 => Just(FaultKind::Wake),
    ];
    (0u64..20_000, kind).prop_map(|(after, kind)| Fault { after, kind })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    /// Whatever went wrong before: when the faults end, the forward is ready within the longest wait, or within the limit
    /// of an attempt that hangs. Where a person was needed, their word (or a new resolution) is part of the cure.
    #[test]
    fn ready_soon_after_the_last_fault(
        faults in prop::collection::vec(any_fault(), 0..40),
        jitter in 0.0..1.0f64,
    ) {
        let (mut machine, mut world, mut now) = (Machine::new(), World::default(), start_of_time());
        world.feed(&mut machine, Input::Start, now, jitter);
        for Fault { after, kind } in faults {
            let until = now + Duration::from_millis(after);
            world.run_until(&mut machine, &mut now, until, jitter);
            match kind {
                FaultKind::Attempts(code) => world.attempts_fail = code,
                FaultKind::Binding(code) => world.binding_fails = code,
                FaultKind::Hang(hang) => world.hang = hang,
                FaultKind::Supply(supply) => world.feed(&mut machine, Input::Supply(supply), now, jitter),
                FaultKind::Wake => world.feed(&mut machine, Input::NetworkChanged, now, jitter),
                FaultKind::Lost if world.transport => {
                    world.transport = false;
                    world.feed(&mut machine, Input::TransportLost(problem(Code::ConnectionLost)), now, jitter);
                }
                FaultKind::Lost => {}
            }
        }
        (world.attempts_fail, world.binding_fails, world.hang) = (None, None, false);
        if !matches!(machine.supply, Supply::Ready { .. }) {
            world.feed(&mut machine, Input::Supply(Supply::Ready { chosen: false }), now, jitter);
        }
        if matches!(machine.status(now), Status::NeedsUser { .. }) {
            world.feed(&mut machine, Input::Retry, now, jitter);
        }
        let bound = now + backoff::LONGEST + World::ANSWER * 2;
        world.run_until(&mut machine, &mut now, bound, jitter);
        prop_assert_eq!(machine.status(now), Status::Ready);
    }
}

/// Feeds inputs at once and returns the effects of the last.
fn drive(machine: &mut Machine, now: Instant, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
    inputs.into_iter().map(|input| machine.step(input, now, 0.0)).last().unwrap_or_default()
}

fn ready_machine(now: Instant) -> Machine {
    let mut machine = Machine::new();
    let supply = Input::Supply(Supply::Ready { chosen: true });
    drive(&mut machine, now, [Input::Start, Input::Bound, supply, Input::WarmOk]);
    assert_eq!(machine.status(now), Status::Ready);
    machine
}

#[test]
fn a_transport_that_dies_unproved_backs_off_and_a_proved_one_returns_at_once() {
    let now = start_of_time();
    let lost = || Input::TransportLost(problem(Code::ConnectionLost));

    let mut flapping = ready_machine(now);
    let effects = drive(&mut flapping, now, [lost()]);
    assert!(!effects.contains(&Effect::Warm), "{effects:?}");
    assert_eq!(flapping.deadline(), Some(now + Duration::from_secs(1)));
    let later = now + Duration::from_secs(1);
    drive(&mut flapping, later, [Input::Timer, Input::WarmOk, lost()]);
    assert_eq!(flapping.deadline(), Some(later + Duration::from_secs(2)), "a PING is no proof of life");

    let mut proved = ready_machine(now);
    assert!(drive(&mut proved, now, [Input::Served, lost()]).contains(&Effect::Warm));

    let mut old = ready_machine(now);
    assert!(drive(&mut old, now + STABLE, [lost()]).contains(&Effect::Warm));
}

#[test]
fn a_refusal_that_needs_a_person_waits_for_news() {
    let now = start_of_time();
    for news in
        [Input::Retry, Input::NetworkChanged, Input::Served, Input::Supply(Supply::Ready { chosen: false })]
    {
        let mut machine = Machine::new();
        let supply = Input::Supply(Supply::Ready { chosen: false });
        let refused = Input::WarmFailed(problem(Code::Forbidden));
        drive(&mut machine, now, [Input::Start, Input::Bound, supply, refused]);
        assert_eq!(machine.status(now).name(), "needs_user");
        assert_eq!(machine.deadline(), None);
        assert!(drive(&mut machine, now, [news.clone()]).contains(&Effect::Warm), "{news:?}");
    }
}

#[test]
fn a_busy_port_is_tried_again_only_when_asked() {
    let now = start_of_time();
    let mut machine = Machine::new();
    drive(&mut machine, now, [Input::Start, Input::BindFailed(problem(Code::PortInUse))]);
    assert_eq!((machine.status(now).name(), machine.deadline()), ("needs_user", None));
    let effects = drive(&mut machine, now, [Input::Supply(Supply::Ready { chosen: false })]);
    assert_eq!(effects, [], "pods do not free a port");
    assert!(drive(&mut machine, now, [Input::Retry]).contains(&Effect::Bind));
}

#[test]
fn it_stays_ready_while_it_moves_to_another_pod() {
    let now = start_of_time();
    let mut machine = ready_machine(now);
    let effects = drive(&mut machine, now, [Input::Supply(Supply::Ready { chosen: false })]);
    assert_eq!(effects, [Effect::Warm]);
    assert_eq!(machine.status(now), Status::Ready);
    drive(&mut machine, now, [Input::TransportLost(problem(Code::PodGone))]);
    assert_eq!(machine.status(now).name(), "recovering");
    drive(&mut machine, now, [Input::WarmOk]);
    assert_eq!(machine.status(now), Status::Ready);
}

#[test]
fn served_connections_hurry_an_unprovable_transport_only_once() {
    let now = start_of_time();
    let mut machine = Machine::new();
    let failed = || Input::WarmFailed(problem(Code::ClusterUnreachable));
    let supply = Input::Supply(Supply::Ready { chosen: false });
    drive(&mut machine, now, [Input::Start, Input::Bound, supply, failed()]);
    assert!(drive(&mut machine, now, [Input::Served]).contains(&Effect::Warm));
    assert_eq!(drive(&mut machine, now, [failed(), Input::Served]), []);
}

#[test]
fn a_lost_last_pod_is_recovering_with_the_reason() {
    let now = start_of_time();
    let mut machine = ready_machine(now);
    let why = problem(Code::NoReadyPods);
    drive(&mut machine, now, [Input::Supply(Supply::Empty(Some(why.clone())))]);
    let recovering = Status::Recovering { attempt: 1, retry_in_ms: None, cause: why };
    assert_eq!(machine.status(now), recovering);
    drive(&mut machine, now, [Input::Supply(Supply::Ready { chosen: false })]);
    assert_eq!(machine.status(now), recovering, "still, while the attempt is under way");
}
