//! What docs/backup.md says, done as it says it: a lab of its own, since everything in it is lost.

use std::fs;
use std::num::NonZeroU32;

use nix::sys::signal::Signal;
use rssh_lab::parts::redis;
use rssh_lab::place::Place;
use rssh_lab::process::{self, PATIENTLY, PROMPTLY, Process};
use rssh_lab::testing::{administer, all_of, block, commands, said, within};
use rssh_lab::{Action, Lab, Options, files, postgres};

/// Where the page has what, and what the lab has instead. All of a machine's `/etc/rssh` lies in the server's directory,
/// the authorities apart.
const MACHINE: [(&str, &str); 6] = [
    ("/etc/rssh", "servers/s1"),
    ("/etc/rssh/pki", "pki"),
    ("/var/lib/rssh-serverd", "servers/s1/state"),
    ("/var/lib/rssh-routerd", "router"),
    ("/var/lib/rssh-broker", "broker"),
    ("/var/backups", "backups"),
];

/// What ends with the servers' machine, in the order in which it starts again.
const SERVERS_SIDE: [&str; 7] = [
    "postgres",
    "redis",
    "mosquitto",
    "sshd-1",
    "serverd-1",
    "haproxy",
    "routerd",
];

/// Runs a block of the page on a machine that looks as the page says: with these directories of the lab in their places.
#[track_caller]
fn follow(lab: &Lab, block: &str) {
    let mut script = String::from(
        "set -e; unset PGUSER PGDATABASE; mkdir -p /run/etc/upper /run/etc/work\n\
         mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc\n\
         mount -t tmpfs tmpfs /var/lib\n",
    );
    for (there, here) in MACHINE {
        fs::create_dir_all(lab.dir().join(here)).unwrap();
        let here = lab.dir().inside(here);
        script += &format!("mkdir -p {there}; mount --bind {here} {there}\n");
    }
    // Redis asks for a password here.
    let asked: Vec<String> = redis::cli(lab.dir(), 1, &[])
        .iter()
        .map(|word| format!("'{word}'"))
        .collect();
    let asks = format!("#!/bin/sh\nPATH=/usr/bin:/bin exec {} \"$@\"\n", asked.join(" "));
    files::write(&lab.dir().join("redis/redis-cli"), asks).unwrap();
    files::set_mode(&lab.dir().join("redis/redis-cli"), 0o755).unwrap();
    script += &format!("PATH={}:$PATH\n", lab.dir().inside("redis"));
    // And the tables are not serverd's own, but the operator's.
    script += &block
        .replace("rssh-routerd\n", "rssh_routerd\n")
        .replace("createuser rssh-serverd", "createuser rssh")
        .replace("--owner rssh-serverd", "--owner rssh");
    let output = lab.command(&Place::Core, &["sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{block}{}", all_of(&output));
}

/// Ends everything of the servers' machine at once, sessions of its sshd too.
fn lose_the_machine(lab: &Lab) {
    for part in SERVERS_SIDE {
        lab.ctl(Action::Kill, part).unwrap();
    }
    let core = process::inode(&lab.networks().file(&Place::Core)).unwrap();
    let left = || -> Vec<Process> { process::in_networks(&[core]) };
    within(PROMPTLY, "sessions have ended too", || {
        for process in left() {
            process.signal(Signal::SIGKILL).ok();
        }
        left().is_empty()
    });
    for lost in [
        "postgres",
        "pki",
        "router",
        "broker",
        "servers/s1/state",
        "servers/s1/sshd",
    ] {
        fs::remove_dir_all(lab.dir().join(lost)).unwrap();
    }
    for lost in ["serverd.toml", "admin.toml"] {
        fs::remove_file(lab.dir().join("servers/s1").join(lost)).unwrap();
    }
}

/// A PostgreSQL as its package makes it: without our role, and without our database.
fn fresh_database(lab: &Lab) {
    postgres::prepare(lab.dir(), lab.programs(), false).unwrap();
    lab.ctl(Action::Start, "postgres").unwrap();
    for statement in ["DROP DATABASE rssh", "DROP ROLE rssh", "DROP ROLE rssh_routerd"] {
        let script = format!("psql -XAtq -U postgres -d postgres -c '{statement}'");
        let output = lab.command(&Place::Core, &["sh", "-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", all_of(&output));
    }
}

fn agent(lab: &Lab) -> Option<i32> {
    let status = lab.status().unwrap();
    status.components.into_iter().find(|part| part.name == "agentd-1")?.pid
}

#[track_caller]
fn opens(lab: &Lab) {
    within(PATIENTLY, "a login to device-1", || {
        lab.exec("alice", &["rssh", "ssh", "device-1", "--", "hostname"])
            .is_ok_and(|output| output.stdout == b"device-1\n")
    });
}

#[test]
fn all_that_the_servers_had_is_lost_and_restored_and_a_device_never_noticed() {
    let lab = Lab::temporary(Options {
        servers: NonZeroU32::MIN,
        devices: 1,
        users: 2,
        ha: false,
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let before = agent(&lab).expect("the agent runs");
    assert_eq!(
        said(&lab, "alice", &["rssh", "ssh", "device-1", "--", "hostname"]),
        "device-1\n"
    );
    let revoked = administer(&lab, &["user", "revoke", "bob"]);
    assert!(revoked.status.success(), "{}", all_of(&revoked));
    follow(&lab, &commands("backup.md", "Backup"));
    // A tunnel that no copy knows of.
    said(&lab, "alice", &["rssh", "open", "device-1", "--new"]);

    lose_the_machine(&lab);
    let page = "Restore on a fresh machine";
    follow(&lab, &block("backup.md", page, "sh", 1));
    fs::remove_file(lab.dir().join("broker/dynamic-security.json")).unwrap();
    fresh_database(&lab);
    follow(&lab, &block("backup.md", page, "sh", 2));
    follow(&lab, &block("backup.md", page, "sh", 3));
    for part in &SERVERS_SIDE[1..] {
        lab.ctl(Action::Start, part).unwrap_or_else(|error| panic!("{error:#}"));
    }
    opens(&lab);
    assert_eq!(agent(&lab), Some(before), "the agent is another process");
    let verified = administer(&lab, &["audit", "--verify"]);
    assert!(verified.status.success(), "{}", all_of(&verified));
    // Bob has a certificate that has not ended, and was revoked before the dump.
    let known = fs::read_to_string(lab.dir().join("broker/dynamic-security.json")).unwrap();
    assert!(known.contains("\"alice\"") && !known.contains("\"bob\""), "{known}");
    assert!(
        !lab.exec("bob", &["rssh", "open", "device-1", "--timeout", "5s"])
            .unwrap()
            .status
            .success()
    );

    // The same dump once more, now that everything has gone on since: the router knows a newer generation than it.
    let generation = || {
        lab.psql("SELECT generation FROM servers")
            .unwrap()
            .parse::<u32>()
            .unwrap()
    };
    lab.ctl(Action::Restart, "serverd-1").unwrap();
    opens(&lab);
    let newer = generation();
    let blocks = [1, 2].map(|n| block("backup.md", "The database alone goes back", "sh", n));
    for part in ["routerd", "serverd-1", "mosquitto"] {
        lab.ctl(Action::Term, part).unwrap();
    }
    follow(&lab, blocks[0].split_once('\n').unwrap().1);
    follow(&lab, &blocks[1]);
    let database = block("backup.md", page, "sh", 2);
    let made: String = database
        .lines()
        .filter(|line| !line.contains("createuser"))
        .flat_map(|line| [line, "\n"])
        .collect();
    follow(&lab, &made);
    follow(&lab, &block("backup.md", page, "sh", 3));
    for part in ["mosquitto", "serverd-1", "routerd"] {
        lab.ctl(Action::Start, part).unwrap_or_else(|error| panic!("{error:#}"));
    }
    opens(&lab);
    assert!(generation() < newer, "the database did not go back");
    assert_eq!(agent(&lab), Some(before), "the agent is another process");
}
