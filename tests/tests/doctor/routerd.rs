//! `rssh-routerd doctor`.

use std::sync::PoisonError;

use rssh_lab::parts::router::servers_up;
use rssh_lab::place::Place;
use rssh_lab::process::PATIENTLY;
use rssh_lab::setup::ask_haproxy;
use rssh_lab::testing::within;
use rssh_lab::{Action, Lab};

use crate::{ALONE, Doctor, lab, mends, names, redis_says, script, sound};

/// The admin socket.
const SOCKET: &str = "router/haproxy/admin.sock";

fn doctor(lab: &Lab) -> Doctor<'_> {
    Doctor {
        lab,
        place: Place::Core,
        program: "rssh-routerd",
        config: "router/routerd.toml",
        before: &[],
    }
}

#[test]
fn a_sound_router_has_no_findings_and_what_is_planted_is_named() {
    let lab = lab();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    within(PATIENTLY, "HAProxy sees the server", || {
        servers_up(lab.dir()).is_ok_and(|up| up == 1)
    });
    sound(&doctor(&lab));
    files_and_rights(&lab);
    others(&lab);
    sound(&doctor(&lab));
}

/// Planted together, each is named; routerd is frozen, lest it put right what HAProxy was told.
fn files_and_rights(lab: &Lab) {
    lab.ctl(Action::Kill, "routerd").unwrap();
    let map = lab.dir().inside("router/haproxy/maps/addresses.map");
    ask_haproxy(lab.dir(), SOCKET, &format!("set map {map} s1 127.0.1.77")).unwrap();
    script(
        lab,
        "chmod 644 router/name-master; cp router/haproxy.pem router/haproxy.kept; \
         cat redis/tls.pem redis/tls.key > router/haproxy.pem; \
         cp router/haproxy/haproxy.cfg router/haproxy/cfg.kept; \
         sed -i 's/tune.ssl.cachesize 0/tune.ssl.cachesize 1000/' router/haproxy/haproxy.cfg",
    );
    lab.psql(
        "REVOKE INSERT ON routers FROM rssh_routerd; INSERT INTO identities (name, kind) VALUES ('s9', 'server'); \
         INSERT INTO servers (id, generation, registration) SELECT 's9', 1, registration FROM servers WHERE id = 's1'",
    )
    .unwrap();
    redis_says(lab, &["acl", "setuser", "routerd", "-mget"]);
    let found = doctor(lab).findings(&[]);
    names(&found, "keys", "name-master is open");
    names(&found, "lb names", "not for *.proxy.test");
    names(&found, "database", "lacks INSERT on routers");
    names(&found, "redis", "mget");
    mends(&found, "redis", "+mget");
    lab.psql("GRANT INSERT ON routers TO rssh_routerd").unwrap();

    script(
        lab,
        "chmod 600 router/name-master; mv router/haproxy.kept router/haproxy.pem",
    );
    redis_says(lab, &["acl", "setuser", "routerd", "+mget"]);
    let found = doctor(lab).findings(&[]);
    names(&found, "registry", "set s1 in addresses.map");
    names(&found, "registry", "the entry of s9 is not believed");
    names(&found, "haproxy config", "does not say: tune.ssl.cachesize 0");

    script(lab, "mv router/haproxy/cfg.kept router/haproxy/haproxy.cfg");
    lab.psql("DELETE FROM identities WHERE name = 's9'; UPDATE routers SET seen_at = now() - interval '1 hour'")
        .unwrap();
    let found = doctor(lab).findings(&[]);
    names(&found, "daemon", "it last wrote down its routes 36");
    lab.ctl(Action::Start, "routerd").unwrap();
}

/// Another time, another authority, and neighbours that are away.
fn others(lab: &Lab) {
    let later = Doctor {
        before: &["faketime", "+400 days"],
        ..doctor(lab)
    };
    let found = later.findings(&[]);
    names(&found, "lb cert", "days ago");
    names(&found, "clock", "behind this machine's");

    let [servers, users] = ["router/servers-ca.pem", "router/users-ca.pem"].map(|below| lab.dir().inside(below));
    let wrong = [
        (
            format!("[registry]\nservers-ca = \"{servers}\""),
            format!("[registry]\nservers-ca = \"{users}\""),
        ),
        (
            "198.51.100.1:8883\"]\nca".to_owned(),
            "198.51.100.1:8889\"]\nca".to_owned(),
        ),
        ("/rssh?host".to_owned(), "/other?host".to_owned()),
    ];
    let wrong: Vec<_> = wrong.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let found = doctor(lab).findings(&wrong);
    names(&found, "registry", "the entry of s1 is not believed");
    names(&found, "broker", "cannot reach the broker 198.51.100.1:8889");
    names(&found, "database", "\"other\" does not exist");

    lab.ctl(Action::Stop, "serverd-1").unwrap();
    within(PATIENTLY, "HAProxy finds the server down", || {
        servers_up(lab.dir()).is_ok_and(|up| up == 0)
    });
    let found = doctor(lab).findings(&[]);
    names(&found, "servers", "do not answer its checks");
    lab.ctl(Action::Cont, "serverd-1").unwrap();

    lab.ctl(Action::Kill, "haproxy").unwrap();
    let found = doctor(lab).findings(&[]);
    names(&found, "haproxy", "haproxy does not answer");
    lab.ctl(Action::Start, "haproxy").unwrap();
}
