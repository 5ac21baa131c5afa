//! Who gets where.

use rssh_proto::failure::FailureKind;

use crate::{all_of, greeting, lab, open, said};

#[test]
fn another_users_name_leads_nowhere() {
    let lab = lab();
    let opened = open(&lab, "alice", "device-1");
    let own = greeting(&lab, "alice", &opened.host);
    assert!(own.starts_with("SSH-2.0-") && own.ends_with(" device-1"), "{own:?}");
    assert_eq!(greeting(&lab, "bob", &opened.host), "");
}

#[test]
fn bob_opens_device_1_and_no_other() {
    let lab = lab();
    assert_eq!(open(&lab, "bob", "device-1").device, "device-1");
    let output = lab.exec("bob", &["rssh", "open", "device-2"]).unwrap();
    assert_eq!(
        output.status.code(),
        Some(i32::from(FailureKind::Denied.exit_code())),
        "{}",
        all_of(&output)
    );
    assert_eq!(output.stdout, b"");
    let proxy = lab.exec("bob", &["ssh", "device-2", "true"]).unwrap();
    assert!(!proxy.status.success());
    let count = lab.psql("SELECT count(*) FROM tunnels WHERE user_id = 'bob' AND device_id <> 'device-1'");
    assert_eq!(count.unwrap(), "0");
}

#[test]
fn failures_name_the_object_in_one_line_and_have_their_own_codes() {
    let lab = lab();
    for (argv, kind, object) in [
        (
            &["rssh", "open", "device-99"][..],
            FailureKind::UnknownDevice,
            "device-99",
        ),
        (
            &["rssh", "open", "device-2", "--port", "23"],
            FailureKind::TargetNotAllowed,
            "localhost:23",
        ),
        (&["rssh", "open", "Device"], FailureKind::BadRequest, "Device"),
    ] {
        let output = lab.exec("grace", argv).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(i32::from(kind.exit_code())),
            "{}",
            all_of(&output)
        );
        assert!(said.contains(object), "{said}");
        if kind != FailureKind::BadRequest {
            assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        }
    }
    assert_eq!(said(&lab, "grace", &["rssh", "ls", "--json"]), "");
}
