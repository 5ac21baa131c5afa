use rssh_proto::finding::Status;

use super::*;
use crate::capacity::Capacity;
use crate::lease::Counts;

const PORTS: PortRange = PortRange {
    first: 20_000,
    last: 29_999,
};

/// Asserts what a finding is, and that its remedy has these words.
#[track_caller]
fn remedy(finding: &Finding, status: Status, words: &str) {
    assert_eq!(finding.status, status, "{finding}");
    assert!(finding.remedy.as_ref().unwrap().contains(words), "{finding}");
}

#[test]
fn a_locked_or_missing_account_is_named() {
    let shadow = |password: &str| format!("root:*:1:\nrssh-tunnel:{password}:1::\n");
    let judge = |exists, shadow: Option<&str>| account("rssh-tunnel", exists, shadow);
    assert_eq!(judge(true, Some(&shadow("*"))).status, Status::Ok);
    assert_eq!(judge(true, None).status, Status::Ok);
    remedy(&judge(true, Some(&shadow("!*"))), Status::Fail, "usermod");
    remedy(&judge(false, None), Status::Fail, "sysusers");
}

#[test]
fn a_helper_that_others_can_change_is_named() {
    let path = Path::new("/usr/lib/rssh/rssh-claim");
    assert_eq!(helper(path, true, None).status, Status::Ok);
    remedy(&helper(path, false, None), Status::Fail, "install");
    let open = Some(Path::new("/usr/lib/rssh"));
    remedy(&helper(path, true, open), Status::Fail, "chmod go-w /usr/lib/rssh");
}

#[test]
fn ports_that_others_use_are_named() {
    assert_eq!(ports(PORTS, None, &[]).status, Status::Ok);
    let conflict = "sshd.ports overlap; run: sysctl -w x";
    remedy(&ports(PORTS, Some(conflict), &[]), Status::Fail, "sysctl");
    let found = ports(PORTS, None, &[20_001]);
    assert!(found.detail.contains("20001"), "{found}");
    remedy(&found, Status::Fail, "ss -ltnp");
}

#[test]
fn leased_ports_that_anyone_reaches_are_named() {
    let judge = |address: &str, rules: Option<&str>| firewall(address.parse().unwrap(), PORTS, rules);
    let rules = |ports: &str| {
        format!(
            "table inet rssh {{\n\tset balancers {{\n\t\telements = {{ 192.0.2.1 }}\n\t}}\n\tchain input {{\n\
             \t\ttype filter hook input priority filter; policy accept;\n\
             \t\ttcp dport {{ 2201-2209, {ports} }} ip saddr != @balancers counter packets 0 bytes 0 drop\n\t}}\n}}\n"
        )
    };
    assert_eq!(judge("127.0.0.1", None).status, Status::Ok);
    assert_eq!(judge("192.0.2.9", Some(&rules("20000-29999"))).status, Status::Ok);
    assert_eq!(judge("192.0.2.9", Some(&rules("20000-39999"))).status, Status::Ok);
    remedy(
        &judge("0.0.0.0", Some(&rules("20000-29999"))),
        Status::Fail,
        "one address",
    );
    remedy(&judge("192.0.2.9", None), Status::Warn, "nft -f");
    remedy(&judge("192.0.2.9", Some("")), Status::Warn, "nft -f");
    remedy(
        &judge("192.0.2.9", Some(&rules("20000-24999"))),
        Status::Fail,
        "20000-29999",
    );
    let open = rules("20000-29999").replace("192.0.2.1", "0.0.0.0/0");
    remedy(&judge("192.0.2.9", Some(&open)), Status::Fail, "balancers");
    let closed = "chain input { type filter hook input priority 0; policy drop; }";
    assert_eq!(judge("192.0.2.9", Some(closed)).status, Status::Ok);
}

#[test]
fn a_way_in_the_clear_is_named() {
    let judge = |address: &str, interface| encryption(address.parse().unwrap(), interface);
    assert_eq!(judge("127.0.1.1", None).status, Status::Ok);
    assert_eq!(judge("10.9.0.1", Some(("wg0", true))).status, Status::Ok);
    remedy(&judge("192.0.2.9", Some(("eth0", false))), Status::Warn, "WireGuard");
    remedy(&judge("192.0.2.9", None), Status::Fail, "correct sshd.address");
}

#[test]
fn what_was_changed_in_sshds_configuration_is_named() {
    let rendered = "# r\nUsePAM no\nPermitTTY no\nPerSourcePenalties no\n";
    let judge = |there| sshd_config(Path::new("/c"), there, rendered);
    assert_eq!(judge(Some(rendered)).status, Status::Ok);
    for (there, what) in [
        (
            "UsePAM no\nPermitTTY yes\nPerSourcePenalties no\n",
            "says PermitTTY yes, not PermitTTY no",
        ),
        (
            "UsePAM no\nPermitTTY no\nPerSourcePenalties no\nBanner x\n",
            "says Banner x",
        ),
        ("UsePAM no\nPerSourcePenalties no\n", "does not say PermitTTY no"),
        ("UsePAM no\nPermitTTY no\n", "one bad device locks out the rest"),
    ] {
        let found = judge(Some(there));
        assert!(found.detail.contains(what), "{found}");
        remedy(&found, Status::Fail, "restart rssh-serverd");
    }
    remedy(&judge(None), Status::Fail, "restart rssh-serverd");
}

#[test]
fn an_sshd_that_does_not_serve_is_named() {
    let address = "192.0.2.9:2201".parse().unwrap();
    assert_eq!(sshd(true, &[], true)[0].status, Status::Ok);
    remedy(&sshd(false, &[], true)[0], Status::Fail, "start rssh-sshd");
    remedy(&sshd(true, &[address], true)[0], Status::Fail, "restart rssh-sshd");
    remedy(&sshd(true, &[], false)[0], Status::Fail, "server init");
}

#[test]
fn scarce_resources_and_a_drain_have_remedies() {
    let counts = |held| Counts {
        held,
        landing: 0,
        free: 0,
        resting: 0,
    };
    let judge = |state, held, tunnels, bound| {
        let answer = Answer {
            state,
            counts: counts(held),
            capacity: Capacity { tunnels, bound },
        };
        daemon(&answer, PORTS)
    };
    let serving = |held, tunnels, bound| judge(ServerState::Serving, held, tunnels, bound);
    let sound = |found: Vec<Finding>| found.iter().all(|finding| finding.status == Status::Ok);
    assert!(sound(serving(10, 10_000, Bound::Ports)));
    assert!(sound(serving(10, 1000, Bound::Memory)));
    assert!(sound(serving(10, 20_000, Bound::Descriptors)));
    remedy(&serving(900, 1000, Bound::Memory)[0], Status::Warn, "server add");
    remedy(
        &judge(ServerState::Draining, 0, 1000, Bound::Ports)[0],
        Status::Warn,
        "restart",
    );
    remedy(&serving(0, 1000, Bound::Processes)[1], Status::Warn, "pid_max");
    remedy(&serving(0, 488, Bound::Descriptors)[1], Status::Warn, "LimitNOFILE");
    remedy(&serving(0, 9000, Bound::Connections)[1], Status::Warn, "sshd.listen");
    remedy(&tasks(Some(4915), PORTS).unwrap(), Status::Warn, "TasksMax");
    assert_eq!(tasks(Some(20_000), PORTS), None);
    assert_eq!(tasks(None, PORTS), None);
}

#[test]
fn an_old_schema_and_missing_rights_are_named() {
    let judge = |missing, denied: &[&str]| {
        database(&Examined {
            role: "rssh_serverd".to_owned(),
            missing,
            clock: 0,
            denied: denied.iter().map(|&right| right.to_owned()).collect(),
        })
    };
    assert_eq!(judge(0, &[]).status, Status::Ok);
    remedy(&judge(2, &[]), Status::Fail, "migrate");
    let found = judge(0, &["INSERT on leases", "UPDATE on tunnels"]);
    assert!(found.detail.contains("INSERT on leases, and 1 more"), "{found}");
    remedy(&found, Status::Fail, "migrate");
}

#[test]
fn missing_names_and_an_unsigned_zone_are_named() {
    let [one, other]: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap()];
    assert_eq!(names("d.test", &[one, other], &[other, one]).status, Status::Ok);
    remedy(&names("d.test", &[], &[]), Status::Fail, "record for d.test");
    remedy(&names("d.test", &[one], &[]), Status::Fail, "*.d.test");
    remedy(&names("d.test", &[one], &[other]), Status::Warn, "*.d.test");
    assert_eq!(dnssec("d.test", Some(true)).status, Status::Ok);
    remedy(&dnssec("d.test", Some(false)), Status::Warn, "DS record");
    remedy(&dnssec("d.test", None), Status::Warn, "resolv.conf");
}
