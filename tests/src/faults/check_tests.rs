use super::super::history::{Lease, Listener, Tunnel};
use super::*;

fn at(at: u64, event: Event) -> Record {
    Record { at, event }
}

fn lease(port: u16, tunnel: &str, epoch: u64) -> Lease {
    Lease {
        server: 1,
        port,
        tunnel: tunnel.to_owned(),
        epoch,
        session: 7,
    }
}

fn listener(port: u16, by_lease: Option<bool>) -> Listener {
    Listener {
        server: 1,
        port,
        inode: 1,
        by_lease,
    }
}

fn tunnel(state: &str, epoch: u64, deadline_ms: i64, expires_ms: i64) -> Tunnel {
    Tunnel {
        id: "t".to_owned(),
        device: "device-1".to_owned(),
        state: state.to_owned(),
        epoch,
        deadline_ms,
        expires_ms,
    }
}

fn seen(leases: Vec<Lease>, tunnels: Vec<Tunnel>, listeners: Vec<Listener>) -> Event {
    Event::Seen(Seen {
        rows: Some(Rows { leases, tunnels }),
        listeners,
        serving: vec![1],
    })
}

fn asked(request: u32) -> Event {
    Event::Asked {
        request,
        device: "device-1".to_owned(),
        timeout_ms: 5_000,
        what: "open device-1".to_owned(),
        proves: true,
    }
}

fn answered(request: u32, exit: Option<i32>, took_ms: u64, banner: Option<&str>, message: &str) -> Event {
    Event::Answered {
        request,
        exit,
        took_ms,
        banner: banner.map(str::to_owned),
        message: message.to_owned(),
    }
}

fn session() -> Event {
    Event::Session {
        session: 1,
        device: "device-1".to_owned(),
    }
}

/// The invariants that a history breaks.
fn broken(history: &[Record]) -> Vec<Invariant> {
    check(history).iter().map(|violation| violation.invariant).collect()
}

fn good() -> Vec<Record> {
    let looks = (0..100).map(|n| {
        let state = if n < 4 { "requested" } else { "active" };
        let held = n >= 4;
        at(
            1_000 + n * 250,
            seen(
                held.then(|| lease(20_000, "t", 1)).into_iter().collect(),
                vec![tunnel(state, u64::from(held), 5_000 - n as i64 * 250, 3_600_000)],
                held.then(|| listener(20_000, Some(true))).into_iter().collect(),
            ),
        )
    });
    let mut history = vec![
        at(0, asked(1)),
        at(900, answered(1, Some(0), 900, Some("SSH-2.0-x device-1"), "")),
    ];
    history.push(at(950, session()));
    history.extend(looks);
    history.extend((0..250).map(|n| at(1_000 + n * 100, Event::Echo { session: 1, took_ms: 1 })));
    history.push(at(26_100, asked(2)));
    history.push(at(
        28_000,
        answered(2, Some(80), 1_900, None, "error: device-1 is offline"),
    ));
    history.push(at(
        28_100,
        Event::Ended {
            session: 1,
            wanted: true,
        },
    ));
    history.sort_by_key(|record| record.at);
    history
}

/// The good history with something planted into it.
fn planted(records: impl IntoIterator<Item = Record>) -> Vec<Invariant> {
    let mut history = good();
    history.extend(records);
    history.sort_by_key(|record| record.at);
    broken(&history)
}

#[test]
fn a_good_history_breaks_nothing() {
    assert_eq!(check(&good()), vec![]);
}

#[test]
fn two_holders_of_a_port_are_caught() {
    let two = seen(vec![lease(20_001, "a", 1), lease(20_001, "b", 1)], vec![], vec![]);
    assert_eq!(planted([at(9_000, two)]), [Invariant::Holder]);
    let two = seen(vec![lease(20_001, "a", 1), lease(20_002, "a", 1)], vec![], vec![]);
    assert_eq!(planted([at(9_000, two)]), [Invariant::Holder]);
    let two = seen(vec![], vec![], vec![listener(20_001, None), listener(20_001, None)]);
    assert_eq!(planted([at(9_000, two)]), [Invariant::Holder]);
}

#[test]
fn a_listener_of_another_process_than_the_leases_is_caught_when_it_stays() {
    let look = || seen(vec![lease(20_001, "a", 1)], vec![], vec![listener(20_001, Some(false))]);
    assert_eq!(broken(&[at(0, look()), at(2_000, look())]), []);
    assert_eq!(broken(&[at(0, look()), at(4_000, look())]), [Invariant::Holder]);
}

#[test]
fn an_epoch_that_falls_is_caught() {
    let look = |epoch| seen(vec![], vec![tunnel("active", epoch, 0, 1_000)], vec![]);
    assert_eq!(broken(&[at(0, look(2)), at(250, look(3))]), []);
    assert_eq!(broken(&[at(0, look(2)), at(250, look(1))]), [Invariant::Holder]);
}

#[test]
fn another_devices_banner_is_caught() {
    for banner in [Some("SSH-2.0-x device-2"), Some("SSH-2.0-x device-11"), Some(""), None] {
        let wrong = answered(9, Some(0), 100, banner, "");
        assert_eq!(planted([at(8_000, asked(9)), at(8_100, wrong)]), [Invariant::Banner]);
    }
}

#[test]
fn a_tunnel_past_its_deadline_or_its_life_is_caught() {
    let late = |state, deadline, expires| seen(vec![], vec![tunnel(state, 1, deadline, expires)], vec![]);
    assert_eq!(
        broken(&[
            at(0, late("requested", 100, 9_000)),
            at(9_000, late("requested", -9_000, 9_000))
        ]),
        []
    );
    assert_eq!(
        broken(&[
            at(0, late("requested", 100, 90_000)),
            at(11_000, late("requested", -10_900, 9_000))
        ]),
        [Invariant::Deadline]
    );
    assert_eq!(
        broken(&[
            at(0, late("requested", 100, 90_000)),
            at(11_000, late("claimed", -10_900, 9_000))
        ]),
        [Invariant::Deadline],
        "it landed after its deadline"
    );
    assert_eq!(
        broken(&[at(0, late("active", -90_000, -10_500))]),
        [Invariant::Deadline]
    );
}

#[test]
fn a_lease_without_an_owner_is_caught_when_it_stays() {
    let look = || seen(vec![lease(20_001, "a", 1)], vec![], vec![]);
    assert_eq!(broken(&[at(0, look()), at(14_000, look())]), []);
    assert_eq!(broken(&[at(0, look()), at(15_500, look())]), [Invariant::Owner]);
    // It had one in between.
    let held = seen(vec![lease(20_001, "a", 1)], vec![], vec![listener(20_001, Some(true))]);
    assert_eq!(broken(&[at(0, look()), at(8_000, held), at(15_500, look())]), []);
}

#[test]
fn a_listener_without_a_lease_is_caught_when_it_stays_and_someone_could_end_it() {
    let look = |serving| {
        Event::Seen(Seen {
            rows: Some(Rows::default()),
            listeners: vec![listener(20_001, None)],
            serving,
        })
    };
    assert_eq!(
        broken(&[at(0, look(vec![1])), at(15_500, look(vec![1]))]),
        [Invariant::Owner]
    );
    assert_eq!(broken(&[at(0, look(vec![2])), at(15_500, look(vec![2]))]), []);
}

#[test]
fn a_request_without_a_named_end_in_time_is_caught() {
    for end in [
        answered(9, Some(0), 7_100, Some("SSH-2.0-x device-1"), ""),
        answered(9, Some(70), 100, None, "error: internal"),
        answered(9, Some(1), 100, None, "panicked"),
        answered(9, Some(80), 100, None, ""),
        answered(9, None, 100, None, "killed"),
    ] {
        let found = planted([at(8_000, asked(9)), at(8_100, end.clone())]);
        assert_eq!(found, [Invariant::Answer], "{end:?}");
    }
    assert_eq!(planted([at(8_000, asked(9))]), [Invariant::Answer], "no answer");
    assert_eq!(
        planted([at(27_000, asked(9))]),
        [],
        "the history ends before its deadline"
    );
}

#[test]
fn an_untouched_session_that_ends_or_stands_still_is_caught() {
    let end = || Event::Ended {
        session: 1,
        wanted: false,
    };
    assert_eq!(broken(&[at(0, session()), at(100, end())]), [Invariant::Session]);
    let touched = Event::Touched { session: 1 };
    assert_eq!(broken(&[at(0, session()), at(50, touched), at(100, end())]), []);
    let echo = Event::Echo { session: 1, took_ms: 1 };
    assert_eq!(broken(&[at(0, session()), at(10_500, echo)]), [Invariant::Session]);
    let note = Event::Note { what: String::new() };
    assert_eq!(broken(&[at(0, session()), at(10_500, note)]), [Invariant::Session]);
}

#[test]
fn a_lasting_violation_is_told_once() {
    let look = || seen(vec![lease(20_001, "a", 1)], vec![], vec![]);
    let history: Vec<_> = (0..100).map(|n| at(n * 250, look())).collect();
    assert_eq!(check(&history).len(), 1);
}

#[test]
fn a_record_is_read_back_from_its_line() {
    for record in good() {
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
