//! `rssh exec`, with a script in ssh's place that writes its log as OpenSSH does.

use rssh_proto::payload::{Operation, Rank, ReplyBody, Request};
use rssh_proto::{Failure, FailureKind};
use serde_json::Value;

use crate::rig::{Rig, SSH, failed, succeeded};
use crate::server::{Answers, opens, reply};

/// Says its command, and ends as its device's number tells: 3 exits so, 4 is cut off, 255 exits so.
const SCRIPT: &str = r#"
while [ "$1" != -- ]; do
    [ "$1" = -E ] && log=$2
    device=$1
    shift
done
shift
echo "out of $device: $*"
echo "err of $device" >&2
echo 'Authenticated to x (via proxy) using "publickey".' >> "$log"
case $device in
    device-4) echo "client_loop: send disconnect: Broken pipe" >> "$log"; exit 255 ;;
    device-3) code=3 ;;
    device-255) code=255 ;;
    *) code=0 ;;
esac
echo "debug1: Exit status $code" >> "$log"
exit $code
"#;

fn rig() -> Rig {
    let open = opens("s1-20000-1999999000-0.proxy.test");
    let answers: Answers = Box::new(move |request: &Request, nth| match &request.op {
        Operation::Open(wanted) if wanted.device.as_str() == "device-80" => {
            let failure = Failure::new(FailureKind::Offline, "device-80 is offline");
            vec![reply(request, 0, Rank::Final, ReplyBody::Failed(failure))]
        }
        _ => open(request, nth),
    });
    Rig::with(answers, SSH).program("ssh", SCRIPT)
}

#[test]
fn lines_follow_their_devices_name_and_the_summary_counts() {
    let rig = rig();
    let output = rig.rssh("exec device-1 root@device-2 -- uname -a").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    let expected = [
        "device-1: out of device-1: uname -a",
        "device-2: out of device-2: uname -a",
    ];
    assert_eq!(lines, expected);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("device-1: err of device-1\n"), "{stderr}");
    assert!(
        stderr.ends_with("rssh: 2 devices: 2 succeeded, 0 ended with another exit code, 0 failed\n"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn each_device_has_its_own_outcome_and_the_rest_finish() {
    let rig = rig();
    let line = "exec --jobs 2 --json device-1 device-3 device-4 device-80 device-255 device-1 -- id";
    let output = rig.rssh(line).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let mut outcomes: Vec<(String, String, u64)> = Vec::new();
    for line in stdout.lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| object[field].as_str().unwrap().to_owned();
        let device = text("device");
        if object["outcome"] == "exited" {
            assert_eq!(text("stdout"), format!("out of {device}: id\n"));
            assert_eq!(object["failure"], Value::Null);
        }
        outcomes.push((device, text("outcome"), object["exit_code"].as_u64().unwrap()));
    }
    outcomes.sort();
    let expected = [
        ("device-1", "exited", 0),
        ("device-255", "exited", 255),
        ("device-3", "exited", 3),
        ("device-4", "failed", 88),
        ("device-80", "failed", 80),
    ];
    assert_eq!(
        outcomes,
        expected.map(|(device, how, code)| (device.into(), how.into(), code))
    );
}

#[test]
fn a_failure_is_named_in_its_line() {
    let output = rig().rssh("exec device-80 device-4 device-3 -- id").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for line in [
        "rssh: device-80 is offline\n",
        "rssh: device-4: the connection was lost, or a signal ended the command: client_loop",
        "rssh: device-3: exit code 3\n",
        "rssh: 3 devices: 0 succeeded, 1 ended with another exit code, 2 failed\n",
    ] {
        assert!(stderr.contains(line), "{stderr}");
    }
    assert_eq!(output.status.code(), Some(88));
}

#[test]
fn quiet_is_the_devices_output_and_nothing_else() {
    let output = rig().rssh("exec -q device-1 -- id").output().unwrap();
    assert_eq!(output.stderr, b"device-1: err of device-1\n");
}

#[test]
fn a_command_and_a_device_are_needed() {
    let rig = Rig::new();
    for line in ["exec device-1", "exec -- id", "exec -oX -- id"] {
        failed(&rig.rssh(line).output().unwrap(), 64, &["--help"]);
    }
    assert!(succeeded(&rig.rssh("exec --help").output().unwrap()).contains("uptime"));
}
