//! The command line, read and refused.

use clap::CommandFactory as _;

use rssh_proto::{Target, TunnelId};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_kind_of_failure_is_in_the_help() {
    let help = Cli::command().render_long_help().to_string();
    for kind in FailureKind::ALL {
        assert!(help.contains(&format!("\n  {}  ", kind.exit_code())), "{kind:?}");
    }
}

#[test]
fn every_command_shows_an_example() {
    for command in Cli::command().get_subcommands() {
        let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(example.contains(&format!("rssh {}", command.get_name())) || command.get_name() == "proxy");
        assert!(example.starts_with("Example"), "{}", command.get_name());
    }
}

#[test]
fn open_goes_to_ssh_unless_told_otherwise() {
    let target = |line| match parse(line).unwrap().command.unwrap() {
        Command::Open(args) => args.target.given().unwrap_or(Target::ssh()).to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(target("rssh open device-42"), "localhost:22");
    assert_eq!(target("rssh open device-42 --port 8080"), "localhost:8080");
    assert_eq!(target("rssh open device-42 --to plc-1"), "plc-1");
    assert_eq!(target("rssh open device-42 --to 10.0.0.1:502"), "10.0.0.1:502");
}

#[test]
fn a_wrong_line_is_told_in_one_line_with_its_remedy() {
    for (line, what) in [
        ("rssh open device-42 --port 1 --to plc-1", "cannot be used with"),
        ("rssh open device-42 --port 0", "not a port"),
        ("rssh open device-42 --port +22", "not a port"),
        ("rssh open device-42 --remote-port 65536", "not a port"),
        ("rssh open device-42 --ttl 5", "not a span of time"),
        ("rssh open device-42 --ttl 0s", "longer than nothing"),
        ("rssh open Device", "not a valid device id"),
        ("rssh open -- -oProxyCommand=x", "not a valid device id"),
        ("rssh open \x1b[31m", "not a valid device id"),
        ("rssh open", "required"),
        ("rssh fly", "fly"),
    ] {
        let told = one_line(&parse(line).unwrap_err().render().to_string());
        assert!(told.contains(what), "{line}: {told}");
        assert!(
            told.contains("; see rssh") && told.ends_with("--help"),
            "{line}: {told}"
        );
        assert!(!told.contains(['\n', '\x1b']), "{told:?}");
    }
}

#[test]
fn close_knows_a_tunnel_from_a_device() {
    let tunnel = TunnelId::generate();
    assert_eq!(tunnel.to_string().parse(), Ok(DeviceOrTunnel::Tunnel(tunnel)));
    let device = "device-1".parse().unwrap();
    assert_eq!("device-1".parse(), Ok(DeviceOrTunnel::Device(device)));
}

#[test]
fn ssh_gets_everything_after_the_device() {
    for (line, expected) in [
        ("rssh ssh root@device-1 -- uname -a", vec!["uname", "-a"]),
        ("rssh ssh root@device-1 uname -a", vec!["uname", "-a"]),
        ("rssh ssh root@device-1 -v --json", vec!["-v", "--json"]),
        ("rssh ssh root@device-1 -- -q", vec!["-q"]),
        ("rssh ssh root@device-1", vec![]),
    ] {
        let Some(Command::Ssh(args)) = parse(line).unwrap().command else {
            panic!("{line}");
        };
        assert_eq!(args.args, expected, "{line}");
        assert_eq!(args.destination.login, Some("root".parse().unwrap()));
    }
    for bad in ["-oX@device-1", "@device-1", "a b@device-1", "root@-x", "root@"] {
        assert!(bad.parse::<Destination>().is_err(), "{bad}");
    }
}

#[test]
fn spans_travel_in_whole_seconds() {
    for (text, expected) in [("1ms", 1), ("1500ms", 2), ("1h", 3600), ("99999d", u32::MAX)] {
        assert_eq!(seconds(text.parse().unwrap()), expected, "{text}");
    }
}

#[test]
fn a_forward_takes_the_targets_port_unless_a_local_one_is_named() {
    for (text, local, target) in [
        ("80", 80, "localhost:80"),
        ("8080:80", 8080, "localhost:80"),
        ("0:plc-1", 0, "plc-1"),
        ("192.168.1.10:502", 502, "192.168.1.10:502"),
        ("5020:192.168.1.10:502", 5020, "192.168.1.10:502"),
        ("[fe80::1]:80", 80, "[fe80::1]:80"),
    ] {
        let forward: Forward = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((forward.local, forward.target.to_string().as_str()), (local, target));
    }
    for bad in ["", "0", "8080:", ":80", "65536:80", "plc-1", "80:0", "8080:-x"] {
        assert!(bad.parse::<Forward>().is_err(), "{bad}");
    }
}

#[test]
fn an_offer_names_both_ends() {
    assert_eq!("0:LAN.host:80".parse::<Offer>().unwrap().to_string(), "0:lan.host:80");
    for bad in ["80", "80:80", "x:host:80", "-1:host:80", "80:-oX:80", "80:host:0"] {
        assert!(bad.parse::<Offer>().is_err(), "{bad}");
    }
    assert!(parse("rssh forward device-1").is_err());
    assert!(parse("rssh forward device-1 -R 80:localhost:80").is_ok());
}

#[test]
fn waiting_has_a_time_of_its_own() {
    let wait = |line| match parse(line).unwrap().command {
        Some(Command::Open(args)) => args.wait.map(|wait| wait.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(wait("rssh open device-1"), None);
    assert_eq!(wait("rssh open --wait device-1").as_deref(), Some("1d"));
    assert_eq!(wait("rssh open device-1 --wait=2h").as_deref(), Some("2h"));
    assert!(parse("rssh open device-1 --wait=2h --timeout 5s").is_err());
}
