use proptest::prelude::*;
use rssh_proto::payload::{CloseRequest, OpenRequest, TunnelState};
use rssh_proto::{DeviceId, HostPort, Target};

use super::*;

const TIMEOUT: Span = Span::seconds(15);

fn device() -> DeviceId {
    "device-42".parse().unwrap()
}

fn open(hold: bool) -> Operation {
    Operation::Open(OpenRequest {
        hold,
        ..OpenRequest::new(device(), Target::ssh())
    })
}

fn ask(op: Operation, now: Instant) -> Ask {
    Ask::new(op, SessionId::generate(), 1, TIMEOUT, now + TIMEOUT.duration())
}

fn broker() -> HostPort {
    "127.0.0.1:8883".parse().unwrap()
}

fn unreachable() -> Down {
    Down::Unreachable {
        broker: broker(),
        reason: "connection refused".into(),
    }
}

fn info(tunnel: TunnelId) -> TunnelInfo {
    TunnelInfo {
        tunnel,
        device: device(),
        target: Target::ssh(),
        state: TunnelState::Active,
        server: Some("s1".parse().unwrap()),
        host: Some("s1-1-1-0.proxy.test".into()),
        port: Some(443),
        expires_at: 0,
        host_expires_at: None,
        host_valid_s: None,
    }
}

fn reply(ask: &Ask, epoch: u64, rank: Rank, body: ReplyBody) -> Reply {
    Reply {
        v: V1,
        request: ask.request.id,
        epoch: Epoch(epoch),
        rank,
        body,
    }
}

fn progress(ask: &Ask, epoch: u64, rank: Rank) -> Reply {
    let body = ReplyBody::Progress {
        tunnel: ask.request.id,
        server: "s1".parse().unwrap(),
    };
    reply(ask, epoch, rank, body)
}

fn failure(commands: &[Command]) -> &Failure {
    match commands {
        [Command::Finish(Err(failure))] => failure,
        other => panic!("{other:?}"),
    }
}

/// Runs the clock until the request is over; the times of its publishes, and its outcome.
fn run_out(ask: &mut Ask, start: Instant) -> (Vec<Duration>, Vec<Command>) {
    let mut sent = vec![];
    loop {
        let now = ask.poll_timeout().expect("it is not over");
        let commands = ask.handle_timeout(now);
        match &commands[..] {
            [Command::Publish(_)] => sent.push(now - start),
            _ => return (sent, commands),
        }
    }
}

#[test]
fn a_request_is_repeated_with_its_id_and_what_is_left_of_its_time() {
    let start = Instant::now();
    let mut ask = ask(open(true), start);
    let [Command::Publish(first)] = &ask.handle_up(start)[..] else {
        panic!("not sent");
    };
    assert_eq!(first.deadline_ms, 15_000);
    let again = ask.poll_timeout().unwrap();
    assert_eq!(again - start, FIRST_PAUSE);
    let [Command::Publish(second)] = &ask.handle_timeout(again)[..] else {
        panic!("not repeated");
    };
    assert_eq!(second.id, first.id);
    assert_eq!(second.deadline_ms, 14_000);
    let (sent, commands) = run_out(&mut ask, start);
    assert_eq!(sent, [3, 5, 7, 9, 11, 13].map(Duration::from_secs));
    let failure = failure(&commands);
    assert_eq!(failure.kind, FailureKind::Deadline);
    assert!(
        failure
            .message()
            .contains("no server has taken the request for device-42")
    );
    assert_eq!(ask.poll_timeout(), None);
}

#[test]
fn a_missed_deadline_names_the_last_stage_reached() {
    for (rank, stage) in [
        (Rank::Accepted, "has not answered within 15s"),
        (Rank::Answered, "its ssh has not connected"),
        (Rank::Claimed, "its tunnel was not ready"),
    ] {
        let start = Instant::now();
        let mut ask = ask(open(true), start);
        ask.handle_up(start);
        let told = ask.handle_reply(progress(&ask, 0, rank), start);
        assert!(matches!(told[..], [Command::Progress(at, _)] if at == rank));
        let (_, commands) = run_out(&mut ask, start);
        assert!(failure(&commands).message().contains(stage), "{commands:?}");
        assert_eq!(ask.left_behind(), Some(ask.request.id));
    }
}

#[test]
fn a_broker_out_of_reach_ends_the_request_once_all_were_tried() {
    let start = Instant::now();
    let mut ask = Ask::new(
        open(true),
        SessionId::generate(),
        2,
        TIMEOUT,
        start + TIMEOUT.duration(),
    );
    assert_eq!(ask.handle_down(&unreachable(), start), []);
    let commands = ask.handle_down(&unreachable(), start);
    assert_eq!(failure(&commands).kind, FailureKind::NobodyServing);
    assert_eq!(ask.left_behind(), None, "nothing was sent");
}

#[test]
fn a_session_that_was_up_is_waited_for_and_the_request_sent_again() {
    let start = Instant::now();
    let mut ask = ask(open(true), start);
    ask.handle_up(start);
    assert_eq!(ask.handle_down(&unreachable(), start), []);
    assert_eq!(ask.handle_down(&unreachable(), start), []);
    assert_eq!(ask.poll_timeout(), Some(ask.deadline), "nothing to send while down");
    assert!(matches!(ask.handle_up(start)[..], [Command::Publish(_)]));
}

#[test]
fn a_refused_certificate_ends_the_request_at_once() {
    let reason = "unknown CA".to_owned();
    for down in [
        Down::Certificate {
            broker: broker(),
            reason,
        },
        Down::NotEnrolled { broker: broker() },
        Down::Subscription {
            broker: broker(),
            filter: "x".into(),
        },
    ] {
        let start = Instant::now();
        let mut ask = ask(open(true), start);
        let commands = ask.handle_down(&down, start);
        assert_eq!(failure(&commands).kind, FailureKind::WrongCertificate, "{down}");
    }
}

#[test]
fn nobody_subscribing_is_believed_after_a_while_and_leaves_nothing_to_close() {
    let start = Instant::now();
    let mut ask = ask(open(true), start);
    ask.handle_up(start);
    let mut now = start;
    let mut sent = 1;
    let commands = loop {
        let commands = ask.handle_delivery(&Ok(Delivery::NoSubscriber), now);
        if !commands.is_empty() {
            break commands;
        }
        now = ask.poll_timeout().unwrap();
        assert!(matches!(ask.handle_timeout(now)[..], [Command::Publish(_)]));
        sent += 1;
    };
    assert_eq!(failure(&commands).kind, FailureKind::NobodyServing);
    assert_eq!(now - start, UNHEARD);
    assert_eq!(sent, 9);
    assert_eq!(ask.left_behind(), None, "nobody heard it");
}

#[test]
fn a_server_that_comes_back_in_time_serves() {
    let start = Instant::now();
    let mut ask = ask(open(true), start);
    ask.handle_up(start);
    ask.handle_delivery(&Ok(Delivery::NoSubscriber), start);
    let later = start + Duration::from_millis(1500);
    ask.handle_delivery(&Ok(Delivery::Accepted), later);
    let much_later = start + Duration::from_secs(5);
    assert_eq!(ask.handle_delivery(&Ok(Delivery::NoSubscriber), much_later), []);
}

#[test]
fn a_hold_is_given_up_by_the_id_of_its_request_and_a_shared_tunnel_by_nobody_else() {
    let start = Instant::now();
    let shared = TunnelId::generate();
    for hold in [true, false] {
        let mut ask = ask(open(hold), start);
        let expected = hold.then_some(ask.request.id);
        ask.handle_up(start);
        let opened = reply(&ask, 1, Rank::Final, ReplyBody::Opened(info(shared)));
        assert!(matches!(ask.handle_reply(opened, start)[..], [Command::Finish(Ok(_))]));
        assert_eq!(ask.left_behind(), expected);
    }
}

#[test]
fn a_failure_from_a_server_leaves_nothing_behind() {
    let start = Instant::now();
    let mut ask = ask(open(true), start);
    ask.handle_up(start);
    let offline = Failure::new(FailureKind::Offline, "device-42 is offline");
    let reply = reply(&ask, 0, Rank::Final, ReplyBody::Failed(offline.clone()));
    assert_eq!(ask.handle_reply(reply, start), [Command::Finish(Err(offline))]);
    assert_eq!(ask.left_behind(), None);
}

#[test]
fn another_devices_tunnel_is_never_an_answer() {
    let start = Instant::now();
    let mut ask = ask(open(true), start);
    ask.handle_up(start);
    let other = TunnelInfo {
        device: "device-43".parse().unwrap(),
        ..info(ask.request.id)
    };
    let reply = reply(&ask, 1, Rank::Final, ReplyBody::Opened(other));
    let commands = ask.handle_reply(reply, start);
    assert_eq!(failure(&commands).kind, FailureKind::Internal);
}

#[test]
fn answers_to_other_requests_and_of_other_kinds_are_ignored() {
    let start = Instant::now();
    let op = Operation::Close(CloseRequest {
        which: Which::Device {
            device: device(),
            target: None,
        },
        force: false,
    });
    let mut ask = ask(op, start);
    ask.handle_up(start);
    let opened = ReplyBody::Opened(info(TunnelId::generate()));
    let foreign = Reply {
        request: TunnelId::generate(),
        ..reply(&ask, 0, Rank::Final, ReplyBody::Closed { items: vec![] })
    };
    assert_eq!(ask.handle_reply(foreign, start), []);
    assert_eq!(ask.handle_reply(reply(&ask, 0, Rank::Final, opened), start), []);
    let closed = reply(&ask, 0, Rank::Final, ReplyBody::Closed { items: vec![] });
    assert!(matches!(
        ask.handle_reply(closed, start)[..],
        [Command::Finish(Ok(Answer::Closed(_)))]
    ));
}

#[test]
fn a_list_is_gathered_from_its_pages_without_repetitions() {
    let start = Instant::now();
    let mut ask = ask(Operation::List, start);
    ask.handle_up(start);
    let tunnels: Vec<TunnelInfo> = (0..3).map(|_| info(TunnelId::generate())).collect();
    let page = |ask: &Ask, items: &[TunnelInfo], last| {
        let items = items.to_vec();
        reply(ask, 0, Rank::Final, ReplyBody::Tunnels { items, last })
    };
    assert_eq!(ask.handle_reply(page(&ask, &tunnels[..2], false), start), []);
    assert_eq!(ask.handle_reply(page(&ask, &tunnels[..2], false), start), []);
    let commands = ask.handle_reply(page(&ask, &tunnels[1..], true), start);
    assert_eq!(commands, [Command::Finish(Ok(Answer::Tunnels(tunnels)))]);
}

/// Something that happens to a request, with the milliseconds that pass before it.
#[derive(Debug, Clone)]
enum Happening {
    Timeout,
    Up,
    Down,
    Delivered,
    Unheard,
    Lost,
    Progress(u64, usize),
    Opened(u64),
    Failed(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => Just(Happening::Timeout),
        1 => Just(Happening::Up),
        1 => Just(Happening::Down),
        1 => Just(Happening::Delivered),
        1 => Just(Happening::Unheard),
        1 => Just(Happening::Lost),
        4 => (0..3_u64, 0..3_usize).prop_map(|(epoch, rank)| Happening::Progress(epoch, rank)),
        1 => (0..3_u64).prop_map(Happening::Opened),
        1 => (0..3_u64).prop_map(Happening::Failed),
    ]
}

proptest! {
    /// Answers come lost, twice, late and in any order, sessions come and go: the request ends once, by its deadline,
    /// progress only goes up, and every publish has the one id.
    #[test]
    fn whatever_happens_a_request_ends_once_and_by_its_deadline(
        happenings in proptest::collection::vec((0..3000_u64, happening()), 0..60)
    ) {
        const RANKS: [Rank; 3] = [Rank::Accepted, Rank::Answered, Rank::Claimed];
        let start = Instant::now();
        let mut now = start;
        let mut ask = ask(open(true), start);
        let mut finished = 0;
        let mut told: Vec<Rank> = vec![];
        let mut check = |ask: &Ask, commands: Vec<Command>, at: Instant| {
            for command in commands {
                match command {
                    Command::Publish(request) => {
                        assert_eq!(request.id, ask.request.id);
                        assert!(u128::from(request.deadline_ms) <= (ask.deadline - at).as_millis());
                        assert_eq!(finished, 0, "sent after its end");
                    }
                    Command::Progress(rank, _) => told.push(rank),
                    Command::Finish(_) => finished += 1,
                }
            }
            assert_eq!(ask.poll_timeout().is_none(), finished > 0);
            finished
        };
        let mut highest = (Epoch(0), Rank::Accepted);
        for (pause, happening) in happenings {
            // The loop never sleeps past a timeout that is due.
            let then = now + Duration::from_millis(pause);
            while let Some(due) = ask.poll_timeout().filter(|due| *due <= then) {
                now = due.max(now);
                let commands = ask.handle_timeout(now);
                check(&ask, commands, now);
            }
            now = then;
            let commands = match happening {
                Happening::Timeout => ask.handle_timeout(now),
                Happening::Up => ask.handle_up(now),
                Happening::Down => ask.handle_down(&unreachable(), now),
                Happening::Delivered => ask.handle_delivery(&Ok(Delivery::Accepted), now),
                Happening::Unheard => ask.handle_delivery(&Ok(Delivery::NoSubscriber), now),
                Happening::Lost => ask.handle_delivery(&Err(PublishError::Lost), now),
                Happening::Progress(epoch, rank) => {
                    let key = (Epoch(epoch), RANKS[rank]);
                    let commands = ask.handle_reply(progress(&ask, epoch, RANKS[rank]), now);
                    if key < highest {
                        prop_assert_eq!(&commands, &[]);
                    } else if ask.poll_timeout().is_some() {
                        highest = key;
                    }
                    commands
                }
                Happening::Opened(epoch) => {
                    let opened = ReplyBody::Opened(info(ask.request.id));
                    ask.handle_reply(reply(&ask, epoch, Rank::Final, opened), now)
                }
                Happening::Failed(epoch) => {
                    let failed = ReplyBody::Failed(Failure::new(FailureKind::Offline, "offline"));
                    ask.handle_reply(reply(&ask, epoch, Rank::Final, failed), now)
                }
            };
            check(&ask, commands, now);
        }
        while let Some(due) = ask.poll_timeout() {
            prop_assert!(due <= ask.deadline);
            now = due.max(now);
            let commands = ask.handle_timeout(now);
            check(&ask, commands, now);
        }
        prop_assert_eq!(check(&ask, vec![], now), 1);
    }
}

#[test]
fn a_request_that_waits_for_its_device_is_repeated_seldom_once_a_server_has_it() {
    let start = Instant::now();
    let mut op = open(true);
    if let Operation::Open(open) = &mut op {
        open.wait = true;
    }
    let mut ask = ask(op, start);
    ask.deadline = start + Duration::from_secs(3600);
    ask.handle_up(start);
    let progress = ReplyBody::Progress {
        tunnel: ask.request.id,
        server: "s1".parse().unwrap(),
    };
    let accepted = reply(&ask, 0, Rank::Accepted, progress);
    ask.handle_reply(accepted, start);
    let mut now = start;
    for _ in 0..3 {
        assert_eq!(ask.poll_timeout(), Some(now + WAITING_PAUSE));
        now += WAITING_PAUSE;
        assert!(matches!(ask.handle_timeout(now)[..], [Command::Publish(_)]));
    }
}
