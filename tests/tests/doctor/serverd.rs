//! `rssh-serverd doctor`.

use std::process::{Command, Stdio};
use std::sync::PoisonError;

use rssh_lab::component::Record;
use rssh_lab::place::Place;
use rssh_lab::process::PATIENTLY;
use rssh_lab::testing::{Running, within};
use rssh_lab::{Action, Lab};

use crate::{ALONE, Doctor, lab, mends, names, redis_says, script, sound};

fn doctor(lab: &Lab) -> Doctor<'_> {
    Doctor {
        lab,
        place: Place::Server(1),
        program: "rssh-serverd",
        config: "servers/s1/serverd.toml",
        before: &[],
    }
}

#[test]
fn a_sound_server_has_no_findings_and_what_is_planted_is_named() {
    let lab = lab();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    sound(&doctor(&lab));

    files_and_rights(&lab);
    configurations(&lab);
    neighbours(&lab);

    sound(&doctor(&lab));
}

/// Planted together, each is named.
fn files_and_rights(lab: &Lab) {
    script(
        lab,
        "chmod 640 servers/s1/state/server.key; chmod 604 pki/servers-ca.key; chmod 644 redis/serverd.password; \
         chmod 775 helpers/rssh-claim; sed -i 's/^rssh-tunnel:\\*/rssh-tunnel:!*/' etc/shadow; \
         mv servers/s1/state/name.key servers/s1/state/name.kept; \
         mv servers/s1/sshd/ssh_host_ed25519_key-cert.pub servers/s1/sshd/kept; \
         cp servers/s1/sshd/sshd_config servers/s1/sshd/config.kept; \
         sed -i 's/^PerSourceMaxStartups none/PerSourceMaxStartups 10/' servers/s1/sshd/sshd_config",
    );
    lab.psql("REVOKE UPDATE ON tunnels FROM rssh_serverd").unwrap();
    redis_says(lab, &["acl", "setuser", "serverd", "-psetex"]);
    let found = doctor(lab).findings(&[]);
    names(&found, "keys", "server.key is open");
    names(&found, "keys", "servers-ca.key is open");
    names(&found, "helpers", "others than root can change");
    names(&found, "account", "rssh-tunnel is locked");
    names(&found, "identity", "name.key");
    names(&found, "sshd", "host key has no certificate");
    names(&found, "sshd config", "one bad device locks out the rest");
    names(&found, "database", "lacks UPDATE on tunnels");

    script(
        lab,
        "chmod 600 servers/s1/state/server.key pki/servers-ca.key redis/serverd.password; chmod 755 helpers/rssh-claim; \
         sed -i 's/^rssh-tunnel:!\\*/rssh-tunnel:*/' etc/shadow; \
         mv servers/s1/state/name.kept servers/s1/state/name.key; \
         mv servers/s1/sshd/kept servers/s1/sshd/ssh_host_ed25519_key-cert.pub; \
         cp servers/s1/sshd/config.kept servers/s1/sshd/sshd_config; \
         sed -i 's/^PermitTTY no/PermitTTY yes/' servers/s1/sshd/sshd_config",
    );
    lab.psql("GRANT UPDATE ON tunnels TO rssh_serverd; UPDATE _sqlx_migrations SET success = false WHERE version = 9")
        .unwrap();
    let found = doctor(lab).findings(&[]);
    names(&found, "sshd config", "says PermitTTY yes, not PermitTTY no");
    names(&found, "database", "older than this program, by 1");
    names(&found, "redis", "it takes no registration");
    mends(&found, "redis", "+psetex");

    script(lab, "mv servers/s1/sshd/config.kept servers/s1/sshd/sshd_config");
    lab.psql("UPDATE _sqlx_migrations SET success = true WHERE version = 9")
        .unwrap();
    redis_says(lab, &["acl", "setuser", "serverd", "+psetex"]);
}

/// A configuration that names what is not so.
fn configurations(lab: &Lab) {
    let ca = format!("[mqtt]\nca = \"{}\"\n", lab.dir().inside("pki/users-ca.pem"));
    let found = doctor(lab).findings(&[
        ("20000-29999", "40000-49999"),
        ("[mqtt]\n", &ca),
        ("\nssh = [\"", "\nssh = [\"nowhere.invalid:2222\", \""),
        (
            "listen = [\"127.0.1.1:2201\"",
            "listen = [\"127.0.1.1:2209\", \"127.0.1.1:2201\"",
        ),
        ("/rssh?host", "/other?host"),
    ]);
    names(&found, "ports", "overlaps the ports that the kernel draws");
    names(&found, "certificate", "does not descend from");
    names(&found, "dns", "nowhere.invalid in public.ssh is not found");
    names(&found, "sshd", "does not listen on 127.0.1.1:2209");
    names(&found, "database", "\"other\" does not exist");

    let routers = lab.dir().inside("redis/routerd.password");
    let serverds = lab.dir().inside("redis/serverd.password");
    let listens = ["openssl", "s_server", "-nocert", "-quiet", "-accept", "0.0.0.0:20001"];
    let mut program: Command = lab.command(&Place::Core, &listens);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let squatter = Running(program.spawn().unwrap());
    within(PATIENTLY, "something listens on a port to lease", || {
        let told = lab.command(&Place::Core, &["ss", "-Htln", "sport = :20001"]).output();
        told.is_ok_and(|output| !output.stdout.is_empty())
    });
    let found = doctor(lab).findings(&[
        ("address = \"127.0.1.1\"", "address = \"198.51.100.1\""),
        (&serverds, &routers),
        ("lb = [\"198.51.100.1:443\"]\n", ""),
        ("brokers = [\"198.51.100.1:8883\"]", "brokers = [\"198.51.100.1:8889\"]"),
    ]);
    drop(squatter);
    names(&found, "ports", "another program listens on port 20001");
    names(&found, "firewall", "nothing here keeps others than the load balancers");
    names(&found, "encryption", "where nothing encrypts");
    names(&found, "redis", "Password authentication failed");
    names(&found, "dns", "proxy.test is not found");
    names(&found, "broker", "cannot reach the broker 198.51.100.1:8889");

    let rules = "table inet leases { chain input { type filter hook input priority 0; policy accept; \
                 ip saddr 192.0.2.1 tcp dport 20000-24999 drop; }; }";
    script(lab, &format!("nft '{rules}'"));
    let found = doctor(lab).findings(&[("address = \"127.0.1.1\"", "address = \"198.51.100.1\"")]);
    script(lab, "nft delete table inet leases");
    names(&found, "firewall", "the rules do not cover sshd.ports, 20000-29999");
}

/// Neighbours that are away, or let too much through; and another time.
fn neighbours(lab: &Lab) {
    let later = Doctor {
        before: &["faketime", "+400 days"],
        ..doctor(lab)
    };
    let found = later.findings(&[]);
    names(&found, "certificate", "days ago");
    names(&found, "clock", "behind this machine's");

    let process = Record::read(lab.dir(), "serverd-1").unwrap().process;
    script(lab, &format!("prlimit --pid {} --nofile=1000:20000", process.pid));
    let found = doctor(lab).findings(&[]);
    names(&found, "limits", "open files of rssh-serverd bind");

    lab.ctl(Action::Kill, "serverd-1").unwrap();
    lab.ctl(Action::Kill, "sshd-1").unwrap();
    script(
        lab,
        "cp broker/mosquitto.conf broker/conf.kept; cp broker/dynamic-security.json broker/security.kept; \
         sed -i -e 's/^require_certificate true/require_certificate false/' -e 's/^use_identity_as_username true//' \
         -e 's/^allow_anonymous false/allow_anonymous true/' -e '/^plugin/d' broker/mosquitto.conf",
    );
    lab.ctl(Action::Restart, "mosquitto").unwrap();
    let found = doctor(lab).findings(&[]);
    names(&found, "daemon", "does not answer on its control socket");
    names(&found, "sshd", "it does not run");
    names(&found, "broker rules", "lets in whoever shows no certificate");
    names(&found, "broker rules", "lets this identity hear everything");

    script(
        lab,
        "mv broker/conf.kept broker/mosquitto.conf; mv broker/security.kept broker/dynamic-security.json",
    );
    lab.ctl(Action::Restart, "mosquitto").unwrap();
    lab.ctl(Action::Start, "sshd-1").unwrap();
    lab.ctl(Action::Start, "serverd-1").unwrap();
}
