//! What the findings of an examination mean: pure judgements, each with its remedy.

use std::path::Path;

use rssh_proto::{Finding, ServerId};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::plan::Command;

const FOLLOW: &str = "systemctl restart rssh-routerd, which puts it right; if it stays: journalctl -u rssh-routerd";

/// The load balancer's certificate: whether it is for the domain and for every name below it.
pub(super) fn names(certificate: &[u8], domain: &str) -> Finding {
    let check = "lb names";
    let names: Vec<String> = X509Certificate::from_der(certificate)
        .ok()
        .and_then(|(_, certificate)| {
            let names = certificate.subject_alternative_name().ok()??.value;
            let dns = names.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            });
            Some(dns.collect())
        })
        .unwrap_or_default();
    let wildcard = format!("*.{domain}");
    if names.contains(&wildcard) {
        return Finding::ok(check, format!("the certificate is for {wildcard}"));
    }
    Finding::fail(
        check,
        format!("the certificate is not for {wildcard}: HAProxy refuses every signed name"),
        format!("get one for {wildcard} and {domain}, put it at haproxy.certificate, and reload HAProxy"),
    )
}

/// What HAProxy would have to be told to be equal to the registry.
///
/// Weights follow the servers' load, and servers that have left are shut off by their word over MQTT, which is not heard
/// here: neither is a difference.
pub(super) fn equal(commands: &[Command], servers: usize) -> Finding {
    let check = "registry";
    let differs = |command: &&Command| !matches!(command, Command::ServerWeight(..) | Command::ServerEnable(_));
    let mut all = commands.iter().filter(differs);
    let Some(first) = all.next() else {
        return Finding::ok(check, format!("HAProxy knows its {servers} servers"));
    };
    let more = match all.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Finding::fail(
        check,
        format!("HAProxy differs from the registry, which says: {first:?}{more}"),
        FOLLOW,
    )
}

/// Entries of the registry that are not believed, and servers that claim an address that another has.
pub(super) fn entries(unbelieved: &[(ServerId, String)], conflicts: &[(ServerId, ServerId)]) -> Vec<Finding> {
    let check = "registry";
    let mut found = Vec::new();
    for (server, reason) in unbelieved {
        found.push(Finding::fail(
            check,
            format!("the entry of {server} is not believed: {reason}"),
            "check registry.servers-ca, this machine's clock, and that server's certificate",
        ));
    }
    for (server, holder) in conflicts {
        found.push(Finding::fail(
            check,
            format!("{server} claims the address that {holder} has, and nobody reaches it"),
            format!("give {server} an sshd.address of its own"),
        ));
    }
    found
}

/// HAProxy's configuration on disk against what this version renders; the list of servers changes all the time.
pub(super) fn configuration(path: &Path, there: Option<&str>, rendered: &str) -> Finding {
    let check = "haproxy config";
    let shown = path.display();
    let remedy = "run: rssh-routerd render, and systemctl reload rssh-haproxy";
    let Some(there) = there else {
        return Finding::fail(check, format!("{shown} is not there"), remedy);
    };
    let (have, want) = (settings(there), settings(rendered));
    if let Some(line) = want.iter().find(|line| !have.contains(*line)) {
        return Finding::fail(check, format!("{shown} does not say: {line}"), remedy);
    }
    match have.iter().find(|line| !want.contains(*line)) {
        Some(line) => Finding::fail(check, format!("{shown} says what was not rendered: {line}"), remedy),
        None => Finding::ok(check, format!("{shown} is as rendered")),
    }
}

/// The lines that mean something, but for the servers of the pools.
fn settings(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("server "))
        .collect()
}

/// Servers that are to be reached and do not answer HAProxy's checks.
pub(super) fn reachable(down: &[String]) -> Finding {
    match down {
        [] => Finding::ok("servers", "every server answers HAProxy's checks"),
        [first, ..] => Finding::fail(
            "servers",
            format!(
                "{} of HAProxy's servers do not answer its checks, {first} among them",
                down.len()
            ),
            "check that server (rssh-serverd doctor), and the firewall between: its health, ssh and leased ports",
        ),
    }
}

/// When the daemon last wrote down where it leads users, in seconds, and how old that may be.
pub(super) fn daemon(ago: Option<i64>, most: i64) -> Finding {
    let check = "daemon";
    let remedy = "systemctl start rssh-routerd; and if it does not stay: journalctl -u rssh-routerd";
    match ago {
        Some(ago) if ago <= most => Finding::ok(check, format!("it wrote down its routes {ago} s ago")),
        Some(ago) => Finding::fail(
            check,
            format!("it last wrote down its routes {ago} s ago: it does not run, or not as this router"),
            remedy,
        ),
        None => Finding::fail(check, "it has never written down its routes", remedy),
    }
}

/// What the role lacks in the database.
pub(super) fn rights(denied: &[String]) -> Finding {
    match denied {
        [] => Finding::ok("database", "it answers, and lets this router do its work"),
        [first, ..] => Finding::fail(
            "database",
            format!("this router's role lacks {first}"),
            "on the server that administrates: rssh-serverd migrate, which grants the roles what they need",
        ),
    }
}

#[cfg(test)]
mod tests {
    use rssh_proto::finding::Status;

    use super::*;
    use crate::desired::Map;

    /// Asserts what a finding is, and that its remedy has these words.
    #[track_caller]
    fn remedy(finding: &Finding, status: Status, words: &str) {
        assert_eq!(finding.status, status, "{finding}");
        assert!(finding.remedy.as_ref().unwrap().contains(words), "{finding}");
    }

    #[test]
    fn a_certificate_without_the_wildcard_is_named() {
        let issued = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let parameters = rcgen::CertificateParams::new(names).unwrap();
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            parameters.self_signed(&key).unwrap().der().to_vec()
        };
        assert_eq!(names(&issued(&["*.d.test", "d.test"]), "d.test").status, Status::Ok);
        remedy(&names(&issued(&["d.test"]), "d.test"), Status::Fail, "*.d.test");
        remedy(&names(&issued(&["*.other.test"]), "d.test"), Status::Fail, "*.d.test");
        remedy(&names(b"junk", "d.test"), Status::Fail, "*.d.test");
    }

    #[test]
    fn a_map_that_differs_is_named_without_what_is_secret_in_it() {
        let weight = Command::ServerWeight(
            crate::desired::PoolName {
                server: "s1".parse().unwrap(),
                index: Some(0),
            },
            7,
        );
        assert_eq!(equal(&[], 2).status, Status::Ok);
        assert_eq!(equal(&[weight], 2).status, Status::Ok);
        let key = |map| Command::MapSet(map, "s1".to_owned(), "secret".to_owned());
        let found = equal(&[key(Map::KeysCurrent), key(Map::Addresses)], 2);
        assert!(
            found.detail.contains("set s1 in keys-current.map, and 1 more"),
            "{found}"
        );
        assert!(!found.to_string().contains("secret"));
        remedy(&found, Status::Fail, "rssh-routerd");
    }

    #[test]
    fn entries_that_lead_nowhere_are_named() {
        let id = |id: &str| -> ServerId { id.parse().unwrap() };
        assert_eq!(entries(&[], &[]), []);
        let found = entries(&[(id("s9"), "expired".to_owned())], &[(id("s2"), id("s1"))]);
        remedy(&found[0], Status::Fail, "servers-ca");
        remedy(&found[1], Status::Fail, "give s2");
    }

    #[test]
    fn what_was_changed_in_haproxys_configuration_is_named() {
        let rendered = "# x\nglobal\n    tune.ssl.cachesize 0\nbackend sshd\n    server s1_0 1.2.3.4:5\n";
        let judge = |there: Option<&str>| configuration(Path::new("/c"), there, rendered);
        assert_eq!(
            judge(Some("global\n  tune.ssl.cachesize 0\nbackend sshd\n")).status,
            Status::Ok
        );
        remedy(&judge(Some("global\nbackend sshd\n")), Status::Fail, "render");
        let more = judge(Some(&format!("{rendered}\nbackend other")));
        assert!(more.detail.contains("backend other"), "{more}");
        remedy(&judge(None), Status::Fail, "render");
    }

    #[test]
    fn servers_a_daemon_and_rights_that_are_missing_are_named() {
        assert_eq!(reachable(&[]).status, Status::Ok);
        remedy(&reachable(&["s1_0".to_owned()]), Status::Fail, "firewall");
        assert_eq!(daemon(Some(4), 25).status, Status::Ok);
        remedy(&daemon(Some(300), 25), Status::Fail, "start rssh-routerd");
        remedy(&daemon(None, 25), Status::Fail, "start rssh-routerd");
        assert_eq!(rights(&[]).status, Status::Ok);
        remedy(&rights(&["INSERT on routers".to_owned()]), Status::Fail, "migrate");
    }
}
