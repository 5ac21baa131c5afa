use super::*;

#[test]
fn a_url_may_name_several_hosts() {
    let named = |url: &str| -> Vec<(String, u16)> {
        let postgres = Postgres::parse(url).unwrap();
        let hosts = postgres.hosts.iter();
        hosts
            .map(|host| (host.get_host().to_owned(), host.get_port()))
            .collect()
    };
    let host = |name: &str, port| (name.to_owned(), port);
    assert_eq!(named("postgres://rssh@db/rssh"), [host("db", 5432)]);
    assert_eq!(
        named("postgres://rssh@db1:5433,db2,[::1]:7/rssh?target_session_attrs=read-write&sslmode=require"),
        [host("db1", 5433), host("db2", 5432), host("[::1]", 7)]
    );
    let postgres = Postgres::parse("postgres://alice@a,b/things").unwrap();
    assert!(postgres.hosts.iter().all(|host| host.get_username() == "alice"));
    assert!(postgres.hosts.iter().all(|host| host.get_database() == Some("things")));
}

#[test]
fn a_url_that_wants_a_stand_by_is_refused() {
    for bad in [
        "postgres://a,b/rssh?target_session_attrs=standby",
        "postgres://a,b/rssh?target_session_attrs=any",
        "postgres://a:x,b/rssh",
        "a,b",
    ] {
        assert!(Postgres::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_host_of_an_older_timeline_is_one_that_was_failed_over_from() {
    let role = |writes, timeline| Role { writes, timeline };
    assert_eq!(role(true, 2).fault(2), None);
    assert_eq!(role(true, 3).fault(2), None);
    assert!(role(true, 1).fault(2).unwrap().contains("timeline 1"));
    assert!(role(false, 0).fault(0).unwrap().contains("stand-by"));
}

#[test]
fn what_a_fail_over_explains_raises_doubt_and_a_success_ends_it() {
    let doubt = Doubt::default();
    doubt.handle(Err(&sqlx::Error::RowNotFound));
    assert!(!doubt.is_raised());
    doubt.handle(Err(&sqlx::Error::PoolTimedOut));
    assert!(doubt.is_raised());
    doubt.handle(Ok(()));
    assert!(!doubt.is_raised());
}

#[test]
fn connections_from_before_a_move_are_not_used() {
    let doubt = Doubt::default();
    let hour = Duration::from_secs(3600);
    assert!(doubt.is_current(hour));
    doubt.moved();
    assert!(!doubt.is_current(hour));
    assert!(doubt.is_current(Duration::ZERO));
}
