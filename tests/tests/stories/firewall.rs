//! Networks that let little out: one port, or a proxy.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rssh_lab::place::{LB, LB_PUBLIC, LB_USERS, Place, SITE_GATEWAY};
use rssh_lab::{Action, Lab};

use crate::{Opened, Running, all_of, lab, within};

/// The device behind the firewall, and the one on which its user sits.
const DEVICE: u32 = 13;
const SEAT: u32 = 14;
/// Where the site's proxy listens.
const PROXY_PORT: u16 = 8888;

/// Lets nothing out of a device's network but TCP to one address and port.
fn wall(lab: &Lab, device: u32, address: &str, port: u16) {
    let rules = format!(
        "add table inet wall; delete table inet wall; table inet wall {{ chain output {{ \
         type filter hook output priority filter; policy drop; \
         oifname \"lo\" accept; ip daddr {address} tcp dport {port} accept; }}; }}"
    );
    lab.on_device(device, &["nft", &rules]).unwrap();
}

/// Whether a device reaches an address at all.
fn reaches(lab: &Lab, device: u32, address: &str, port: u16) -> bool {
    let script = format!("exec 3<>/dev/tcp/{address}/{port}");
    lab.on_device(device, &["timeout", "2", "bash", "-c", &script]).is_ok()
}

/// Has the device's agent go by the public port, with more lines at the top of its configuration.
fn configure(lab: &Lab, top: &str) {
    let path = lab.dir().join(format!("devices/device-{DEVICE}/agentd.toml"));
    let original = path.with_extension("original");
    if !original.exists() {
        fs::copy(&path, &original).unwrap();
    }
    let text = fs::read_to_string(&original).unwrap();
    let public = format!("{LB_PUBLIC}:{LB_USERS}");
    let (mqtt, ssh) = text.split_once("[ssh]\n").unwrap();
    let (before, after) = mqtt.split_once("brokers = ").unwrap();
    let after = after.split_once('\n').unwrap().1;
    let text = format!("{top}\n{before}brokers = [\"{public}\"]\n{after}[ssh]\nlb = \"{public}\"\n{ssh}");
    fs::write(&path, text).unwrap();
    lab.ctl(Action::Restart, &format!("agentd-{DEVICE}")).unwrap();
}

/// The user's files, as programs see them.
fn files(lab: &Lab) -> String {
    lab.dir().inside("users/ivan/home/.config/rssh")
}

/// Writes a profile that goes by the public port, with more lines.
fn profile(lab: &Lab, name: &str, more: &str) {
    let dir = lab.dir().join("users/ivan/home/.config/rssh");
    let text = fs::read_to_string(dir.join("profile.toml")).unwrap();
    let public = format!("{LB_PUBLIC}:{LB_USERS}");
    let kept = text
        .lines()
        .filter(|line| !line.starts_with("brokers =") && !line.starts_with("lb ="));
    let text = kept.fold(
        format!("brokers = [\"{public}\"]\nlb = \"{public}\"\n{more}\n"),
        |text, line| text + line + "\n",
    );
    fs::write(dir.join(name), text).unwrap();
}

/// Runs something where the user sits.
fn seated(lab: &Lab, profile: &str, environment: &str, argv: &[&str]) -> Output {
    let profile = format!("RSSH_PROFILE={}/{profile}", files(lab));
    let mut all = vec!["env", &profile];
    all.extend(environment.split_whitespace());
    all.extend(argv);
    let mut command: Command = lab.command(&Place::Device(SEAT), &all);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Opens a tunnel, logs in through it and closes it: the whole story.
fn story(lab: &Lab, profile: &str, environment: &str) {
    let device = format!("device-{DEVICE}");
    let seated = |argv: &[&str]| {
        let output = seated(lab, profile, environment, argv);
        assert!(output.status.success(), "{argv:?}: {}", all_of(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let opened: Opened = serde_json::from_str(&seated(&["rssh", "open", &device, "--json"])).unwrap();
    assert!(opened.banner.unwrap().contains(&device));
    let home = lab.dir().inside("users/ivan/home");
    let (key, known) = (
        format!("{home}/.ssh/id_ed25519"),
        format!("UserKnownHostsFile={home}/.ssh/known_hosts"),
    );
    let options = [
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "ProxyCommand=rssh proxy %h %p",
        "-o",
        &known,
    ];
    let login = [
        &["ssh"][..],
        &options[..],
        &["-i", &key, "-l", "root", &device, "hostname"][..],
    ]
    .concat();
    assert_eq!(seated(&login).trim(), device);
    seated(&["rssh", "close", &device]);
}

fn online(lab: &Lab) {
    let status = format!("SELECT online FROM devices WHERE id = 'device-{DEVICE}'");
    within(Duration::from_secs(30), "the device is online", || {
        lab.psql(&status).is_ok_and(|online| online == "t")
    });
}

#[test]
fn with_one_port_let_out_and_then_with_a_proxy_only_a_tunnel_opens_all_the_same() {
    let lab = lab();
    let public = LB_PUBLIC.to_string();
    for device in [DEVICE, SEAT] {
        assert!(reaches(&lab, device, &LB.to_string(), 8883), "before there is a wall");
        wall(&lab, device, &public, LB_USERS);
        assert!(!reaches(&lab, device, &LB.to_string(), 8883));
        assert!(reaches(&lab, device, &public, LB_USERS));
    }
    configure(&lab, "");
    profile(&lab, "one-port.toml", "");
    online(&lab);
    story(&lab, "one-port.toml", "");

    // A proxy that asks who is there, and connects to port 443 only.
    let conf = lab.dir().join("tinyproxy.conf");
    let text = format!(
        "Port {PROXY_PORT}\nListen {SITE_GATEWAY}\nTimeout 600\nMaxClients 50\nAllow 10.77.0.0/16\n\
         BasicAuth keeper s3cret\nConnectPort 443\nLogLevel Connect\n"
    );
    fs::write(conf, text).unwrap();
    let mut tinyproxy = lab.command(
        &Place::Site,
        &["tinyproxy", "-d", "-c", &lab.dir().inside("tinyproxy.conf")],
    );
    let log = fs::File::create(lab.dir().join("log/tinyproxy.log")).unwrap();
    let _tinyproxy = Running(tinyproxy.stdin(Stdio::null()).stdout(log).spawn().unwrap());
    let gateway = SITE_GATEWAY.to_string();
    for device in [DEVICE, SEAT] {
        wall(&lab, device, &gateway, PROXY_PORT);
        within(Duration::from_secs(30), "the proxy listens", || {
            reaches(&lab, device, &gateway, PROXY_PORT)
        });
        assert!(!reaches(&lab, device, &public, LB_USERS), "past the proxy");
    }
    configure(
        &lab,
        &format!("proxy = \"http://keeper:s3cret@{gateway}:{PROXY_PORT}\""),
    );
    online(&lab);
    story(
        &lab,
        "one-port.toml",
        &format!("HTTPS_PROXY=http://keeper:s3cret@{gateway}:{PROXY_PORT}"),
    );
    let password = lab.dir().join("users/ivan/home/.config/rssh/proxy-password");
    rssh_lab::files::write_secret(&password, "s3cret\n").unwrap();
    let proxy = format!("proxy = \"http://keeper@{gateway}:{PROXY_PORT}\"\nproxy-password-file = \"proxy-password\"");
    profile(&lab, "proxy.toml", &proxy);
    story(&lab, "proxy.toml", "HTTPS_PROXY=http://192.0.2.1:1");

    // Without the password nothing opens, and it is said why; the password is nowhere to be read.
    profile(
        &lab,
        "nobody.toml",
        &format!("proxy = \"http://{gateway}:{PROXY_PORT}\""),
    );
    let output = seated(&lab, "nobody.toml", "", &["rssh", "open", &format!("device-{DEVICE}")]);
    assert_eq!(output.status.code(), Some(69), "{}", all_of(&output));
    assert!(
        all_of(&output).contains("user and a password (407)"),
        "{}",
        all_of(&output)
    );
    for log in [format!("agentd-{DEVICE}"), "haproxy".to_owned()] {
        let text = fs::read_to_string(lab.log(&log)).unwrap();
        assert!(!text.contains("s3cret"), "{log} has the password");
    }
}
