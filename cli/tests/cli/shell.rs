//! Completion and the manual.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::rig::{Rig, SSH, succeeded};
use crate::server::opens;

fn rig() -> Rig {
    let rig = Rig::with(opens("s1-20000-1999999000-0.proxy.test"), SSH);
    for device in ["device-1", "device-23", "gate"] {
        succeeded(&rig.rssh(&format!("open {device}")).output().unwrap());
    }
    rig
}

/// What bash offers for the last word of a line, by the script that is to be sourced.
fn offered(rig: &Rig, line: &str) -> Vec<String> {
    let words = line.split(' ').count() - 1;
    let script = format!(
        "source <(rssh completions bash); complete=$(complete -p rssh); complete=${{complete##*-F }}; \
         COMP_WORDS=({line}); COMP_CWORD={words}; COMP_TYPE=9; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; \
         ${{complete%% *}} rssh \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let program = assert_cmd::cargo::cargo_bin!("rssh");
    let own = rig.process("");
    let mut bash = Command::new("bash");
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => bash.env(name, value),
            None => bash.env_remove(name),
        };
    }
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = bash.env("PATH", path).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_devices_that_were_seen_and_tunnels_that_are_open() {
    let rig = rig();
    assert_eq!(offered(&rig, "rssh open dev"), ["device-1", "device-23"]);
    assert_eq!(offered(&rig, "rssh ssh device-2"), ["device-23"]);
    assert_eq!(offered(&rig, "rssh exec device-1 ga"), ["gate"]);
    let tunnels = offered(&rig, "rssh close 0");
    assert_eq!(tunnels.len(), 3, "{tunnels:?}");
    assert_eq!(offered(&rig, "rssh comp"), ["completions"]);
    let requests = rig.peers().0.requests().len();
    assert_eq!(requests, 3, "nobody is asked");
}

#[test]
fn a_thousand_devices_are_completed_within_200_ms() {
    let rig = rig();
    let known = fs::read_dir(rig.path("cache/rssh/known"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    for n in 0..1000 {
        fs::write(known.path().join("devices").join(format!("many-{n}")), "").unwrap();
    }
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let mut command = rig.process("-- rssh ssh many-");
        let output = command
            .envs([
                ("RSSH_COMPLETE", "bash"),
                ("_CLAP_COMPLETE_INDEX", "2"),
                ("_CLAP_IFS", "\n"),
            ])
            .output()
            .unwrap();
        times.push(start.elapsed());
        assert_eq!(succeeded(&output).lines().count(), 1000);
    }
    assert!(times.iter().min() < Some(&Duration::from_millis(200)), "{times:?}");
}

#[test]
fn every_shell_gets_its_script() {
    let rig = Rig::new();
    for (shell, word) in [("bash", "complete -o"), ("zsh", "#compdef rssh"), ("fish", "complete ")] {
        let script = succeeded(&rig.rssh(&format!("completions {shell}")).output().unwrap());
        assert!(script.contains(word) && script.contains("RSSH_COMPLETE"), "{script}");
    }
}

#[test]
fn the_manual_is_written_for_every_command_and_man_reads_it() {
    let rig = Rig::new();
    let line = format!("man --dir {}", rig.path("man1").display());
    let pages = succeeded(&rig.rssh(&line).output().unwrap());
    assert!(pages.lines().any(|page| page.ends_with("/man1/rssh.1")), "{pages}");
    let root = fs::read_to_string(rig.path("man1/rssh.1")).unwrap();
    assert!(
        root.contains(".SH \"EXIT STATUS\"") && root.contains("rssh\\-open(1)"),
        "{root}"
    );
}
